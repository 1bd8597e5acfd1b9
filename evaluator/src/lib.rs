//! Generation and scoring inside a scope that gives its memory back.
