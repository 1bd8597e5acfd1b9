//! From lines of JSON to tokens, labels and packed rows.
