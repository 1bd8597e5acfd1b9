//! Who uses the memory, for what, and will it fit: meters, ledger, planner.
