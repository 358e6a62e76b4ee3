"""What `sage.doctest --environment` imports: Sage's own names, with our adapter and our writer behind them."""

import adapter  # noqa: F401
from sage.all__sagemath_categories import *  # noqa: F403
