// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Keys that cannot be meant: there are none of that name, or what they are is of another kind.

use toml::{Table, Value};

/// How alike two names are, from 0 to 1, of which one may be meant by the other.
const ALIKE: f64 = 0.6;

/// What is wrong with the first key of `given` that is not in `known`, or is not of the kind of what it is there.
pub fn complaint(given: &Table, known: &Table) -> Option<String> {
    given
        .iter()
        .find_map(|(key, value)| match (known.get(key), value) {
            (Some(Value::Table(section)), Value::Table(given)) => {
                given
                    .iter()
                    .find_map(|(name, value)| match section.get(name) {
                        Some(default) => of_another_kind(&format!("{key}.{name}"), value, default),
                        None => Some(unknown(name, section, &format!("{key}."), known)),
                    })
            }
            (Some(default), value) => of_another_kind(key, value, default),
            (None, _) => Some(unknown(key, known, "", known)),
        })
}

fn of_another_kind(key: &str, value: &Value, default: &Value) -> Option<String> {
    let expected = match (default, value) {
        (Value::Integer(_), Value::Integer(0..))
        | (Value::Boolean(_), Value::Boolean(_))
        | (Value::String(_), Value::String(_)) => return None,
        (Value::Array(_), Value::Array(items)) if items.iter().all(Value::is_str) => return None,
        (Value::Integer(_), _) => format!("a whole number, as {}", shown(default)),
        (Value::Boolean(_), _) => "true or false".to_owned(),
        (Value::String(_), _) => format!("a text in quotes, as {}", shown(default)),
        (Value::Array(items), _) if items.is_empty() => "a list, as [\"…\"]".to_owned(),
        (Value::Array(_), _) => format!("a list, as {}", shown(default)),
        _ => format!("a section, [{key}]"),
    };
    Some(format!(
        "{key} is {}, and should be {expected}",
        shown(value)
    ))
}

/// A value much as it is written in the file.
fn shown(value: &Value) -> String {
    match value {
        Value::Datetime(time) => time.to_string(),
        value => serde_json::to_string(value).unwrap_or_else(|_| value.type_str().to_owned()),
    }
}

/// `key` is not among the names of `section`, whose own name is `prefix`.
fn unknown(key: &str, section: &Table, prefix: &str, known: &Table) -> String {
    let shown = key.escape_debug();
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(name, key);
    let nearest = section
        .keys()
        .map(|name| (likeness(name), name))
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .filter(|(likeness, _)| *likeness >= ALIKE);
    if let Some((_, name)) = nearest {
        return format!("there is no key {prefix}{shown}; is {prefix}{name} meant?");
    }
    let elsewhere: Vec<_> = known
        .iter()
        .filter(|(_, section)| section.get(key).is_some())
        .map(|(section, _)| format!("{section}.{shown}"))
        .collect();
    if !elsewhere.is_empty() {
        let elsewhere = elsewhere.join(" or ");
        return format!("there is no key {prefix}{shown}; is {elsewhere} meant?");
    }
    let names: Vec<_> = section.keys().map(String::as_str).collect();
    let names = names.join(", ");
    format!("there is no key {prefix}{shown}; there are {names}")
}
