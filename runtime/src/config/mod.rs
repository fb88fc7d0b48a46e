// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The configuration file: what a host's administrator wants otherwise than by default.
//!
//! The file that is installed (`config.toml` beside this one) holds every key with its default and its unit, commented
//! out. What the command line says goes before it.

mod file;
mod keys;

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use coracle_network::{Network, NetworkConfig};
use coracle_oci::layer::Options as UnpackOptions;
use coracle_registry::Options as RegistryOptions;

use self::file::File;

/// The most bytes of a configuration file.
const LIMIT: u64 = 1 << 20;

/// How this host is to do things.
#[derive(Clone, Debug)]
pub struct Config {
    pub run: Run,
    pub log_limit: u64,
    pub network: NetworkConfig,
    pub unpack: UnpackOptions,
    pub registry: RegistryOptions,
}

/// Defaults of `coracle run`.
#[derive(Clone, Debug)]
pub struct Run {
    pub memory_mib: u64,
    pub cpus: u8,
    pub boot_timeout: Duration,
    pub network: Vec<Network>,
}

impl Config {
    /// Reads the file at `path`; where none was `named`, it need not be there.
    pub fn read(path: &Path, named: bool, root: &Path) -> Result<Self> {
        let what = || format!("the configuration file {} cannot be used", path.display());
        let text = match read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !named => String::new(),
            text => text.with_context(what)?,
        };
        Self::parse(&text, root).with_context(what)
    }

    #[cfg(test)]
    pub fn of_nothing() -> Self {
        Self::parse("", Path::new("/var/lib/coracle")).unwrap()
    }

    fn parse(text: &str, root: &Path) -> Result<Self> {
        let table: toml::Table = text
            .parse()
            .map_err(|error: toml::de::Error| anyhow!(error.to_string().trim_end().to_owned()))?;
        if !table.is_empty()
            && let Some(complaint) = keys::complaint(&table, &File::known()?)
        {
            bail!(complaint);
        }
        // By now that is a number too large for its key.
        let file: File = table
            .try_into()
            .map_err(|error| anyhow!(error.to_string().trim_end().replace('\n', " ")))?;
        file.config(root)
    }
}

fn read(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > LIMIT {
        return Err(io::Error::other(format!("it has more than {LIMIT} bytes")));
    }
    fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// What is installed.
    const INSTALLED: &str = include_str!("config.toml");

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Path::new("/var/lib/coracle"))
    }

    #[test]
    fn installed_file_changes_nothing_and_names_every_key_with_its_default() {
        let uncommented: String = INSTALLED
            .lines()
            .filter_map(|line| {
                line.strip_prefix("#")
                    .filter(|rest| !rest.starts_with(' '))
                    .or(Some(line).filter(|line| line.starts_with('[')))
            })
            .map(|line| format!("{line}\n"))
            .collect();

        let installed: toml::Table = INSTALLED.parse().unwrap();
        let named: toml::Table = uncommented.parse().unwrap();

        assert!(
            installed
                .values()
                .all(|section| section.as_table().is_some_and(toml::Table::is_empty))
        );
        assert_eq!(named, File::known().unwrap());
    }

    #[test]
    fn what_is_set_counts() {
        let config = parse(
            "[run]\nmemory = 512\nnetwork = [\"none\"]\n[log]\nlimit = 1\n[image]\nlimit = 2\n",
        )
        .unwrap();

        assert_eq!(config.run.memory_mib, 512);
        assert_eq!(config.run.network, [Network::None]);
        assert_eq!(config.run.cpus, 1);
        assert_eq!(config.log_limit, 1 << 20);
        assert_eq!(config.unpack.limits.bytes, 2 << 30);
    }

    #[rstest]
    #[case::key(
        "[run]\nmemroy = 512",
        "there is no key run.memroy; is run.memory meant?"
    )]
    #[case::section("[netwrok]\n", "there is no key netwrok; is network meant?")]
    #[case::far("[run]\nxyzzyxyzzy = 1", "there is no key run.xyzzyxyzzy")]
    #[case::value("[run]\ncpus = 33", "run.cpus is 33, and should be 1 to 32")]
    #[case::memory(
        "[run]\nmemory = 1",
        "run.memory is 1 MiB, and should be 96 to 16777216"
    )]
    #[case::none_and_one(
        "[run]\nnetwork = [\"none\", \"host-nat\"]",
        "run.network has none beside others"
    )]
    #[case::parallel(
        "[registry]\nparallel = 1000000",
        "registry.parallel is 1000000, and should be 1 to 64"
    )]
    #[case::no_image("[image]\nlimit = 0", "image.limit is 0 GiB, and should be 1 or more")]
    #[case::no_entries("[image]\nentries = 0", "image.entries is 0, and should be 1 or more")]
    #[case::no_time(
        "[network]\ncni_deadline = 0",
        "network.cni_deadline is 0 s, and should be 1 or more"
    )]
    #[case::network("[run]\nnetwork = [\"a/b\"]", "run.network")]
    #[case::start(
        "[run]\nboot_timeout = 0",
        "run.boot_timeout is 0 s, and should be 1 or more"
    )]
    #[case::no_log("[log]\nlimit = 0", "log.limit is 0 MiB, and should be 1 or more")]
    #[case::text_for_a_number(
        "[run]\nmemory = \"512\"",
        "run.memory is \"512\", and should be a whole number, as 256"
    )]
    #[case::less_than_nothing("[run]\nmemory = -5", "run.memory is -5, and should be a whole")]
    #[case::too_many_cpus("[run]\ncpus = 300", "run.cpus is 300, and should be 1 to 32")]
    #[case::too_large("[log]\nlimit = 99999999999", "in `log.limit`")]
    #[case::text_for_a_list(
        "[run]\nnetwork = \"none\"",
        "run.network is \"none\", and should be a list, as [\"host-nat\"]"
    )]
    #[case::list_of_numbers(
        "[registry]\ninsecure = [1]",
        "registry.insecure is [1], and should be a list"
    )]
    #[case::number_for_a_choice(
        "[network]\nisolate = 1",
        "network.isolate is 1, and should be true or false"
    )]
    #[case::number_for_a_text("[network]\nipv4 = 10", "should be a text in quotes, as \"auto\"")]
    #[case::no_section("run = 3", "run is 3, and should be a section, [run]")]
    #[case::key_without_its_section("memory = 5", "there is no key memory; is run.memory meant?")]
    #[case::key_of_two_sections("limit = 5", "is image.limit or log.limit meant?")]
    #[case::key_of_another_section(
        "[log]\nmemory = 5",
        "there is no key log.memory; is run.memory meant?"
    )]
    #[case::syntax("[run", "expected")]
    fn broken_file_is_refused(#[case] text: &str, #[case] expected: &str) {
        let error = parse(text).unwrap_err();

        let error = format!("{error:#}");
        assert!(error.contains(expected), "{error}");
        assert!(!error.ends_with('\n'), "{error}");
    }

    #[test]
    fn file_that_nobody_named_need_not_be_there() {
        let path = Path::new("/nonexistent/config.toml");

        assert!(Config::read(path, false, path).is_ok());
        let error = Config::read(path, true, path).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/config.toml"));
    }
}
