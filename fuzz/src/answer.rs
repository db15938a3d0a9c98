//! The asking side of the control socket: any text as the answer of a daemon, or of what calls itself one.

use std::collections::BTreeSet;

use podlane::outside;
use podlane::printable;
use podlane::status::{SCHEMA, Status};
use podlane::trace::Trace;
use serde_json::{Map, Value, json};

use crate::Seeds;

/// Reads it as a status and as a trace, and shows what was understood.
///
/// # Panics
/// If what was understood does not survive being written and read.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match outside::status(text) {
        Ok(status) => show(&status),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(trace) = serde_json::from_str::<Trace>(text) {
        let _ = printable::lines(&trace.render());
    }
}

fn show(status: &Status) {
    let _ = printable::lines(&status.render());
    let written = serde_json::to_value(status).expect("a status can be written");
    let again = outside::status(&written.to_string()).expect("and read again");
    let again = serde_json::to_value(&again).expect("and written again");
    assert!(is_same(&written, &again), "{written}\n{again}");
}

/// Equal, but for the last digit of a number with a fraction: serde_json reads such numbers fast and not quite exactly.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(a), Value::Number(b)) if a.is_f64() && b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap_or_default(), b.as_f64().unwrap_or_default());
            (a - b).abs() <= a.abs() * 1e-12
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, value)| other.get(name).is_some_and(|other| is_same(value, other)))
        }
        _ => one == other,
    }
}

/// Documents that `docs/status.schema.json` describes, each with another choice wherever there is one; and a trace.
pub fn seeds() -> Seeds {
    let schema: Value =
        serde_json::from_str(include_str!("../../docs/status.schema.json")).expect("the schema is JSON");
    let mut all = Seeds::new();
    for choice in 0..4 {
        let mut document = instance(&schema, &schema, choice);
        document["schema"] = json!(SCHEMA);
        all.push((format!("status-{choice}"), document.to_string().into_bytes()));
    }
    all.push(("status-other-schema".to_owned(), br#"{"schema":999999}"#.to_vec()));
    let trace = json!({"from":"10.244.1.2","to":"10.244.2.2","protocol":"tcp","port":80,"bytes":84,"ttl":64,"generation":3,
        "steps":[{"at":"pod","what":"eth0 of 10.244.1.2 sends to the node"}],"handled_by":"podlane","ingress":"veth0",
        "egress":"eth0","reason":null});
    all.push(("trace".to_owned(), trace.to_string().into_bytes()));
    all
}

/// A value that a schema describes. `choice` says which of several possible ones, and how large numbers are.
fn instance(of: &Value, whole: &Value, choice: usize) -> Value {
    if let Some(name) = of.get("$ref").and_then(Value::as_str) {
        return instance(whole.pointer(&name[1..]).expect("what is referred to"), whole, choice);
    }
    if let Some(value) = of.get("const") {
        return value.clone();
    }
    for several in ["oneOf", "anyOf", "enum"] {
        if let Some(choices) = of.get(several).and_then(Value::as_array) {
            let chosen = &choices[choice % choices.len()];
            return if several == "enum" { chosen.clone() } else { instance(chosen, whole, choice) };
        }
    }
    let kind = match of.get("type") {
        Some(Value::Array(kinds)) => kinds[choice % kinds.len()].as_str(),
        kind => kind.and_then(Value::as_str),
    };
    match kind {
        Some("object") => object(of, whole, choice),
        Some("array") => {
            let items = of.get("items").map_or(Value::Null, |items| instance(items, whole, choice));
            Value::Array(vec![items; choice.min(2)])
        }
        Some("integer") => json!([7, 0, 1_000_000, 4_000_000_000_u64][choice % 4]),
        Some("number") => json!([0.5, 0.0, 86_400.0, 1e9][choice % 4]),
        Some("boolean") => json!(choice.is_multiple_of(2)),
        Some("string") => json!(["veth0", "", "shop/web-0", "a\u{1b}[2J"][choice % 4]),
        _ => Value::Null,
    }
}

fn object(of: &Value, whole: &Value, choice: usize) -> Value {
    let names = of.get("required").and_then(Value::as_array).into_iter().flatten();
    let required: BTreeSet<_> = names.filter_map(Value::as_str).collect();
    let mut members = Map::new();
    for (name, member) in of.get("properties").and_then(Value::as_object).into_iter().flatten() {
        if choice.is_multiple_of(2) || required.contains(name.as_str()) {
            members.insert(name.clone(), instance(member, whole, choice));
        }
    }
    if let Some(more) = of.get("additionalProperties").filter(|more| more.is_object()) {
        members.insert("too_big".to_owned(), instance(more, whole, choice));
    }
    Value::Object(members)
}
