// What a launch costs: from the host, one after another; cooperative; as a node of a graph; and as a node that may
// begin before its predecessor has ended (programmatic dependent launch).
#include <chrono>

#include "common.cuh"

constexpr int LAUNCHES = 1000;

__global__ void empty_kernel(unsigned* count) {
  if (blockIdx.x == 0 && threadIdx.x == 0) ++*count;
}

__global__ void dependent_kernel(unsigned* count) {
  asm volatile("griddepcontrol.wait;" ::: "memory");  // for what the predecessor wrote
  if (blockIdx.x == 0 && threadIdx.x == 0) ++*count;
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

struct Stream {
  cudaStream_t s;
  cudaEvent_t begin, end;
  Stream() {
    CHECK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
  }
};

struct Kind {
  bool cooperative = false, graph = false, dependent = false;
};

void enqueue(Kind kind, int blocks, unsigned* count, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attribute = {};
  config.gridDim = blocks;
  config.blockDim = THREADS;
  config.stream = stream;
  config.attrs = &attribute;
  if (kind.cooperative) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = config.numAttrs = 1;
  }
  if (kind.dependent) {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = config.numAttrs = 1;
  }
  CHECK(cudaLaunchKernelEx(&config, kind.dependent ? dependent_kernel : empty_kernel, count));
}

// Microseconds of one launch: by events on the device, and what the host spent on it.
void time(const std::string& name, Kind kind, int blocks) {
  Stream stream;
  Memory<unsigned> count(1);
  cudaGraphExec_t graph = nullptr;
  auto all = [&] {
    for (int k = 0; k < LAUNCHES; ++k) enqueue(kind, blocks, count.p, stream.s);
  };
  if (kind.graph) {
    cudaGraph_t captured;
    CHECK(cudaStreamBeginCapture(stream.s, cudaStreamCaptureModeRelaxed));
    all();
    CHECK(cudaStreamEndCapture(stream.s, &captured));
    CHECK(cudaGraphInstantiate(&graph, captured, 0));
  }
  constexpr int TIMES = 8;
  std::vector<double> device, host;
  for (int k = 0; k < TIMES; ++k) {
    CHECK(cudaEventRecord(stream.begin, stream.s));
    auto began = std::chrono::steady_clock::now();
    if (graph) {
      CHECK(cudaGraphLaunch(graph, stream.s));
    } else {
      all();
    }
    host.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - began).count());
    CHECK(cudaEventRecord(stream.end, stream.s));
    CHECK(cudaStreamSynchronize(stream.s));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, stream.begin, stream.end));
    device.push_back(1e3 * ms);
  }
  unsigned counted;
  CHECK(cudaMemcpy(&counted, count.p, sizeof counted, cudaMemcpyDeviceToHost));
  if (counted != TIMES * LAUNCHES) throw std::runtime_error("kernels ran: " + std::to_string(counted));
  std::sort(device.begin(), device.end());
  std::sort(host.begin(), host.end());
  print(name, {{"us", device[TIMES / 2] / LAUNCHES},
               {"us_least", device.front() / LAUNCHES},
               {"us_most", device.back() / LAUNCHES},
               {"host_us", host[TIMES / 2] / LAUNCHES},
               {"blocks", double(blocks)}});
}

void stream(const std::string& name, int blocks) { time(name, {}, blocks); }
void cooperative(const std::string& name, int blocks) { time(name, {true}, blocks); }
void graph(const std::string& name, int blocks) { time(name, {false, true}, blocks); }
void dependent_graph(const std::string& name, int blocks) { time(name, {false, true, true}, blocks); }

int main() {
  std::vector<Figure> figures;
  for (int blocks : {1, 128}) {
    std::string n = "_" + std::to_string(blocks);
    figures.push_back({"launch_stream" + n, stream, blocks});
    figures.push_back({"launch_cooperative" + n, cooperative, blocks});
    figures.push_back({"launch_graph" + n, graph, blocks});
    figures.push_back({"launch_graph_dependent" + n, dependent_graph, blocks});
  }
  return run_all(figures);
}
