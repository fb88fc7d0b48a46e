// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle images`.

use anyhow::Result;
use coracle_oci::digest::Digest;
use coracle_oci::store::{Store, StoredImage};
use serde_json::{Value, json};

use crate::cli::{Directories, ImagesArguments};
use crate::container::Time;
use crate::print::{print, print_json};
use crate::table::{bytes, table};

/// Digits of a digest that are shown.
const DIGITS: usize = 12;

/// Lists the images in the store.
pub fn images(directories: &Directories, arguments: &ImagesArguments) -> Result<u8> {
    let images = Store::open(&directories.root)?.images()?;
    if arguments.json {
        let all: Vec<_> = images.iter().map(value).collect();
        print_json(&all)?;
    } else if arguments.quiet {
        let names: String = images
            .iter()
            .map(|stored| format!("{}\n", stored.name.familiar()))
            .collect();
        print(&names)?;
    } else {
        let rows: Vec<_> = images.iter().map(row).collect();
        let heads = ["NAME", "DIGEST", "PLATFORM", "CREATED", "SIZE"];
        print(&table(heads, &rows))?;
    }
    Ok(0)
}

fn row(stored: &StoredImage) -> [String; 5] {
    let name = stored.name.familiar();
    let digest = short(&stored.digest).to_owned();
    match &stored.image {
        Ok(image) => [
            name,
            digest,
            image.config.platform().to_string(),
            created(image.config.created.as_deref()),
            bytes(image.size()),
        ],
        Err(_) => [name, digest, "damaged".to_owned(), unknown(), unknown()],
    }
}

/// An image, as JSON.
fn value(stored: &StoredImage) -> Value {
    let mut value = json!({
        "name": stored.name,
        "digest": stored.digest,
    });
    let more = match &stored.image {
        Ok(image) => json!({
            "manifest": image.manifest.digest,
            "platform": image.config.platform().to_string(),
            "created": image.config.created,
            "size": image.size(),
            "layers": image.layers.len(),
        }),
        Err(error) => json!({ "damaged": error.to_string() }),
    };
    if let (Some(fields), Value::Object(more)) = (value.as_object_mut(), more) {
        fields.extend(more);
    }
    value
}

fn short(digest: &Digest) -> &str {
    let hex = digest.hex();
    hex.get(..DIGITS).unwrap_or(hex)
}

/// How long ago an image says that it was made; those that are made the same each time say the epoch.
fn created(text: Option<&str>) -> String {
    match text.and_then(|text| text.parse::<Time>().ok()) {
        Some(time) => format!("{} ago", time.ago()),
        None => unknown(),
    }
}

fn unknown() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::none(None)]
    #[case::no_time(Some("yesterday"))]
    #[case::escape(Some("\x1b[2J"))]
    fn time_that_is_none_is_not_known(#[case] text: Option<&str>) {
        assert_eq!(created(text), "-");
    }

    #[test]
    fn time_is_told_from_now() {
        assert_eq!(created(Some(&Time::now().to_string())), "0 s ago");
    }
}
