"""A character-level language model on `fusedlstm.LSTM`: train it on any text, then let it write.

`settings` says what a run is, `corpus` turns a text into streams of ids, `model` is the network and `train`
the loop, `checkpoint` the file that survives a crash, `sample` the writer, `report` what the terminal shows.
"""
