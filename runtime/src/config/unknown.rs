// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Keys that there are none of, and which are meant.

use toml::{Table, Value};

/// How alike two names are, from 0 to 1, of which one may be meant by the other.
const ALIKE: f64 = 0.6;

/// What is wrong with the first key of `given` that is not in `known`.
pub fn first(given: &Table, known: &Table) -> Option<String> {
    look(given, known, "")
}

fn look(given: &Table, known: &Table, prefix: &str) -> Option<String> {
    given
        .iter()
        .find_map(|(key, value)| match (known.get(key), value) {
            (Some(Value::Table(known)), Value::Table(given)) => {
                look(given, known, &format!("{prefix}{key}."))
            }
            (Some(_), _) => None,
            (None, _) => Some(complaint(key, known, prefix)),
        })
}

fn complaint(key: &str, known: &Table, prefix: &str) -> String {
    let shown = key.escape_debug();
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(name, key);
    let nearest = known
        .keys()
        .map(|name| (likeness(name), name))
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .filter(|(likeness, _)| *likeness >= ALIKE);
    match nearest {
        Some((_, name)) => format!("there is no key {prefix}{shown}; is {prefix}{name} meant?"),
        None => {
            let names: Vec<_> = known.keys().map(String::as_str).collect();
            format!(
                "there is no key {prefix}{shown}; there are {}",
                names.join(", ")
            )
        }
    }
}
