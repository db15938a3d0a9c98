//! The configuration file without what might be nobody's business: only the keys that Podlane has are copied. Comments, and
//! values of keys that it does not know, may be anything and are left out.

use crate::config::KEYS;

/// The known keys of a file in TOML, and the names of those whose values were left out.
///
/// # Errors
/// If it is not TOML.
pub fn known_keys(text: &str) -> Result<(String, Vec<String>), String> {
    let table: toml::Table =
        text.parse().map_err(|error: toml::de::Error| format!("not TOML: {}", error.message().replace('\n', ", ")))?;
    let (known, unknown): (toml::Table, toml::Table) =
        table.into_iter().partition(|(key, _)| KEYS.contains(&key.as_str()));
    Ok((known.to_string(), unknown.keys().cloned().collect()))
}
