// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which of several images a tag means.

use std::path::Path;

use super::ImageError;
use crate::show::quoted;

/// The tag that is meant where none is given and there are several.
const DEFAULT_TAG: &str = "latest";
/// Most tags that an error names.
const SHOWN_TAGS: usize = 10;

/// An image among others, with the names that it has there.
pub(super) trait Named {
    fn names(&self) -> impl Iterator<Item = &str>;
}

/// Those of `images` that `tag` means, or without a tag the only one or `latest`; several where they have one name.
pub(super) fn chosen<'i, I: Named>(
    path: &Path,
    images: &'i [I],
    tag: Option<&str>,
) -> Result<Vec<&'i I>, ImageError> {
    if let Some(tag) = tag {
        return by_tag(images, tag).ok_or_else(|| ImageError::NoSuchTag {
            path: path.to_owned(),
            tag: tag.escape_debug().to_string(),
            known: known_tags(images),
        });
    }
    let first = images
        .first()
        .ok_or_else(|| ImageError::Empty(path.to_owned()))?;
    // Entries of one name, or of none, are variants of one image.
    if images.iter().all(|image| image.names().eq(first.names())) {
        return Ok(images.iter().collect());
    }
    by_tag(images, DEFAULT_TAG).ok_or_else(|| ImageError::TagNeeded {
        path: path.to_owned(),
        known: known_tags(images),
    })
}

fn by_tag<'i, I: Named>(images: &'i [I], tag: &str) -> Option<Vec<&'i I>> {
    let named = |is_meant: &dyn Fn(&str) -> bool| -> Vec<&'i I> {
        images
            .iter()
            .filter(|image| image.names().any(is_meant))
            .collect()
    };
    let exact = named(&|name| name == tag);
    if !exact.is_empty() {
        return Some(exact);
    }
    // Archives of docker and podman carry whole names, such as docker.io/library/busybox:1.36.
    let by_end = named(&|name| {
        name.strip_suffix(tag)
            .is_some_and(|start| start.ends_with(':'))
    });
    (!by_end.is_empty()).then_some(by_end)
}

fn known_tags(images: &[impl Named]) -> String {
    let mut tags: Vec<String> = images
        .iter()
        .flat_map(Named::names)
        .map(|name| quoted(name.as_bytes()))
        .collect();
    tags.dedup();
    match tags.len() {
        0 => "no tags".to_owned(),
        count if count > SHOWN_TAGS => format!(
            "{} and {} more",
            tags[..SHOWN_TAGS].join(", "),
            count - SHOWN_TAGS
        ),
        _ => tags.join(", "),
    }
}
