//! Rewriting of routed frames in place.
