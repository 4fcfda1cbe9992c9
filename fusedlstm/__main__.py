"""`python -m fusedlstm`: the command line."""

import sys

from fusedlstm.cli import main

sys.exit(main())
