// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The index of modules that are loaded only when something wants them, as `coracle-guest` writes it: a line a module, with its file,
//! the modules that it depends on and its aliases.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{ModuleError, file_in, load};

/// Name of the index in its directory.
const FILE: &str = "index";

/// Modules of one directory.
#[derive(Debug, Default)]
pub struct Index {
    directory: PathBuf,
    modules: Vec<Module>,
}

#[derive(Debug)]
struct Module {
    file: String,
    dependencies: Vec<String>,
    aliases: Vec<String>,
}

impl Index {
    /// Reads the index of a directory; `None` if it has none.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn read(directory: &Path) -> Result<Option<Self>, ModuleError> {
        let path = directory.join(FILE);
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ModuleError::Read { path, source }),
            Ok(text) => Ok(Some(Self::parse(directory, &text))),
        }
    }

    /// Reads the text of an index of modules in `directory`.
    #[must_use]
    pub fn parse(directory: &Path, text: &str) -> Self {
        let list = |list: Option<&str>, separator: char| -> Vec<String> {
            list.unwrap_or_default()
                .split(separator)
                .filter(|entry| !entry.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let module = |line: &str| {
            let mut columns = line.split('\t');
            Module {
                file: columns.next().unwrap_or_default().to_owned(),
                dependencies: list(columns.next(), ','),
                aliases: list(columns.next(), ' '),
            }
        };
        Self {
            directory: directory.to_owned(),
            modules: text.lines().map(module).collect(),
        }
    }

    /// What the aliases of devices begin with: the names of buses, and some words that are none.
    pub(super) fn kinds(&self) -> BTreeSet<&str> {
        self.modules
            .iter()
            .flat_map(|module| &module.aliases)
            .filter_map(|alias| alias.split_once(':'))
            .map(|(kind, _)| kind)
            .filter(|kind| !kind.contains('/') && !kind.starts_with('.'))
            .collect()
    }

    /// The files of the modules that `name` stands for, by their own names or by aliases, each after what it depends on.
    #[must_use]
    pub fn asked_for(&self, name: &str) -> Vec<&str> {
        let canonical = name.replace('-', "_");
        let mut walk = Walk {
            index: self,
            seen: BTreeSet::new(),
            order: Vec::new(),
        };
        for module in &self.modules {
            let fits = |alias: &String| matches(alias.as_bytes(), name.as_bytes());
            if module.name() == canonical || module.aliases.iter().any(fits) {
                walk.visit(module);
            }
        }
        walk.order
    }

    /// Loads the modules in `files`, in this order; gives what kept some from being loaded. These keep no other from it:
    /// an alias may fit several modules, of which one does not know the device.
    pub(super) fn load(&self, files: &[&str]) -> Vec<ModuleError> {
        let load = |file: &&str| load(&file_in(&self.directory, file)?);
        files.iter().filter_map(|file| load(file).err()).collect()
    }
}

/// A walk through dependencies.
struct Walk<'i> {
    index: &'i Index,
    seen: BTreeSet<&'i str>,
    order: Vec<&'i str>,
}

impl<'i> Walk<'i> {
    fn visit(&mut self, module: &'i Module) {
        // No deeper than there are modules, since each is visited once.
        if !self.seen.insert(&module.file) {
            return;
        }
        for dependency in &module.dependencies {
            // One that is not there is built in, or loaded.
            let named = |module: &&Module| module.name() == dependency;
            if let Some(dependency) = self.index.modules.iter().find(named) {
                self.visit(dependency);
            }
        }
        self.order.push(&module.file);
    }
}

impl Module {
    fn name(&self) -> &str {
        self.file.strip_suffix(".ko").unwrap_or(&self.file)
    }
}

/// Whether `pattern`, in which `*` stands for anything and `?` for one character, fits all of `text`.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut position) = (0, 0);
    // Where the last `*` is, and how much of the text it has been given.
    let mut star: Option<(usize, usize)> = None;
    while position < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, position));
                at += 1;
            }
            Some(byte) if *byte == b'?' || Some(byte) == text.get(position) => {
                at += 1;
                position += 1;
            }
            _ => {
                let Some((star_at, taken)) = star else {
                    return false;
                };
                star = Some((star_at, taken + 1));
                (at, position) = (star_at + 1, taken + 1);
            }
        }
    }
    pattern
        .get(at..)
        .is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const TEXT: &str = "\
failover.ko\t\t
net_failover.ko\tfailover\t
virtio_net.ko\tvirtio,net_failover\tvirtio:d00000001v*
xt_MASQUERADE.ko\t\tip6t_MASQUERADE ipt_MASQUERADE
ext4.ko\tmbcache\tfs-ext4 fs-ext3
";

    #[rstest]
    #[case::device("virtio:d00000001v554D4551", &["failover.ko", "net_failover.ko", "virtio_net.ko"])]
    #[case::alias("fs-ext3", &["ext4.ko"])]
    #[case::name("net-failover", &["failover.ko", "net_failover.ko"])]
    #[case::part("fs-ext", &[])]
    #[case::nothing("", &[])]
    fn what_is_asked_for_comes_after_what_it_needs(#[case] name: &str, #[case] expected: &[&str]) {
        let index = Index::parse(Path::new("/modules"), TEXT);

        assert_eq!(index.asked_for(name), expected);
    }

    #[test]
    fn modules_that_depend_on_each_other_end() {
        let index = Index::parse(Path::new("/modules"), "a.ko\tb\t\nb.ko\ta\t\n");

        assert_eq!(index.asked_for("a"), ["b.ko", "a.ko"]);
    }

    #[test]
    fn kinds_are_what_leads_aliases() {
        let index = Index::parse(Path::new("/modules"), TEXT);

        assert_eq!(index.kinds(), BTreeSet::from(["virtio"]));
    }

    #[test]
    fn directory_without_an_index_has_no_modules() {
        let directory = tempfile::tempdir().unwrap();

        assert!(Index::read(directory.path()).unwrap().is_none());
    }

    #[test]
    fn file_elsewhere_is_refused() {
        let index = Index::parse(Path::new("/modules"), "../../etc/passwd\t\tx\n");

        let failures = index.load(&index.asked_for("x"));

        assert!(
            matches!(failures[..], [ModuleError::Name { .. }]),
            "{failures:?}"
        );
    }

    #[rstest]
    #[case("a*c", "abbc", true)]
    #[case("a*c", "ac", true)]
    #[case("a*c", "acb", false)]
    #[case("*b*", "abc", true)]
    #[case("a?c", "abc", true)]
    #[case("a?c", "ac", false)]
    #[case("", "", true)]
    #[case("*", "", true)]
    #[case("a", "ab", false)]
    fn pattern_fits(#[case] pattern: &str, #[case] text: &str, #[case] expected: bool) {
        assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected);
    }

    proptest! {
        #[test]
        fn text_fits_itself_with_any_part_starred(text in "[a-c]{0,12}", cut in any::<prop::sample::Index>()) {
            let cut = cut.index(text.len() + 1);
            let pattern = format!("{}*", &text[..cut]);

            prop_assert!(matches(pattern.as_bytes(), text.as_bytes()));
            prop_assert!(matches(text.as_bytes(), text.as_bytes()));
        }
    }
}
