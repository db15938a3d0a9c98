//! The JSON Schema of `podlane status --json`, made from the types themselves, so that it cannot tell anything else than what the
//! daemon says. `docs/status.schema.json` is this text; a test compares the two, and real answers with it.

use schemars::generate::SchemaSettings;

use super::Status;

/// The schema as text, by JSON Schema's draft 2020-12. It describes what is said, and leaves room for what later versions add.
pub fn text() -> String {
    let schema = SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<Status>();
    serde_json::to_string_pretty(&schema).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}")) + "\n"
}
