"""The commands of `fusedlstm`, one in each file."""
