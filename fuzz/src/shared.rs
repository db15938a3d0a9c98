//! What the property tests of the other crates have: the same code here.
#![allow(missing_docs, dead_code)]

#[path = "../../dataplane/tests/digest/mod.rs"]
pub mod digest;
#[path = "../../loader/tests/meaning/mod.rs"]
pub mod meaning;
#[path = "../../dataplane/tests/spec/mod.rs"]
pub mod spec;
#[path = "../../dataplane/tests/world/mod.rs"]
pub mod world;
