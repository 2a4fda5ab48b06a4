//! What an operator lives with.
