// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle load` and `coracle tag`.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use coracle_oci::image::{Name, Source};
use coracle_oci::store::Store;

use super::progress::Unpacking;
use crate::cli::{Directories, LoadArguments, TagArguments};
use crate::print::print;

/// Puts an image of an archive or a directory into the store; those that have whole names there, if none is given.
pub fn load(directories: &Directories, arguments: &LoadArguments) -> Result<u8> {
    let from = &arguments.from;
    let what = || format!("cannot load {from}");
    let source = Source::open(&from.path)?;
    let tag = from.tag.as_deref();
    let images: Vec<(Name, Option<String>)> = match &arguments.name {
        Some(name) => vec![(name.clone(), from.tag.clone())],
        None => whole_names(source.names()?, tag)
            .into_iter()
            .map(|(name, text)| (name, Some(text)))
            .collect(),
    };
    ensure!(
        !images.is_empty(),
        "nothing in {from} says what an image of it is called (give it a name: coracle load {from} NAME)"
    );
    let store = Store::open(&directories.root)?;
    for (name, tag) in &images {
        let copying = Unpacking::copying();
        store
            .add(name, &source, tag.as_deref(), Some(&copying))
            .with_context(what)?;
        drop(copying);
        print(&format!("{}\n", name.familiar()))?;
    }
    Ok(0)
}

/// Those names of an archive that leave nothing to be understood, with how they are written there; `tag` narrows them
/// down.
///
/// A word alone, as layouts have it, is a tag and not a name: `latest` names no image of that name.
fn whole_names(names: Vec<String>, tag: Option<&str>) -> BTreeSet<(Name, String)> {
    names
        .into_iter()
        .filter(|text| text.contains([':', '/']))
        .filter_map(|text| Some((text.parse::<Name>().ok()?, text)))
        .filter(|(name, text)| tag.is_none_or(|tag| name.tag() == Some(tag) || text == tag))
        .collect()
}

/// Gives an image another name.
pub fn tag(directories: &Directories, arguments: &TagArguments) -> Result<u8> {
    let TagArguments { name, other } = arguments;
    ensure!(
        other.digest().is_none(),
        "{} has a digest, which cannot be chosen",
        other.familiar()
    );
    Store::open(&directories.root)?.tag(name, other)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::two(&["docker.io/library/a:1", "b:2"], None, &["a:1", "b:2"])]
    #[case::chosen(&["a:1", "b:2"], Some("2"), &["b:2"])]
    #[case::chosen_whole(&["a:1", "b:1"], Some("b:1"), &["b:1"])]
    #[case::tag_alone(&["latest"], None, &[])]
    #[case::no_name(&["a b:c"], None, &[])]
    fn whole_names_are_found(
        #[case] names: &[&str],
        #[case] tag: Option<&str>,
        #[case] expected: &[&str],
    ) {
        let names = names.iter().map(|&name| name.to_owned()).collect();

        let found = whole_names(names, tag);

        let familiar: Vec<_> = found.iter().map(|(name, _)| name.familiar()).collect();
        assert_eq!(familiar, expected);
    }
}
