// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration lists (section 1 of the specification), and what each plugin gets of them (section 3).

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::NetworkError;
use crate::name;

/// A configuration file larger than this is none.
const MAX_FILE: u64 = 1 << 20;

/// Files that are looked at in one directory.
const MAX_FILES: usize = 1000;

/// Plugins of one network.
const MAX_PLUGINS: usize = 64;

/// Versions whose plugins and results this program understands, newest last.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What a configuration without a version is of.
const UNVERSIONED: &str = "0.1.0";

/// A network: its name, and the plugins that make it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigurationList {
    cni_version: String,
    name: String,
    #[serde(default)]
    disable_check: bool,
    plugins: Vec<Map<String, Value>>,
}

impl ConfigurationList {
    /// Reads a list, or a single plugin's configuration as a list of one.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut value: Map<String, Value> = serde_json::from_slice(bytes)
            .map_err(|error| format!("it is no JSON object: {error}"))?;
        let cni_version = version_of(&value)?;
        let name = match value.get("name") {
            Some(Value::String(name)) => name.clone(),
            Some(name) => return Err(bad_name(&name.to_string())),
            None => return Err("it has no name".to_owned()),
        };
        let disable_check = is_true(value.get("disableCheck"));
        let plugins = match value.remove("plugins") {
            None => vec![value],
            Some(Value::Array(plugins)) => plugins
                .into_iter()
                .map(|plugin| match plugin {
                    Value::Object(plugin) => Ok(plugin),
                    _ => Err("one of its plugins is not an object".to_owned()),
                })
                .collect::<Result<_, _>>()?,
            Some(_) => return Err("its plugins are not a list".to_owned()),
        };
        let list = Self {
            cni_version,
            name,
            disable_check,
            plugins,
        };
        list.validate()?;
        Ok(list)
    }

    /// Whether its names can be such: they become parts of paths.
    pub(crate) fn validate(&self) -> Result<(), String> {
        if name::check_network(&self.name).is_err() {
            return Err(bad_name(&self.name));
        }
        if self.plugins.is_empty() || self.plugins.len() > MAX_PLUGINS {
            return Err(format!(
                "it has {} plugins; 1 to {MAX_PLUGINS} are taken",
                self.plugins.len()
            ));
        }
        for plugin in &self.plugins {
            match plugin.get("type") {
                Some(Value::String(kind)) if name::is_plugin_type(kind) => {}
                Some(kind) => {
                    let kind = name::shorten(&kind.to_string());
                    return Err(format!(
                        "the type {kind} of a plugin is not the name of a program"
                    ));
                }
                None => return Err("one of its plugins has no type".to_owned()),
            }
        }
        Ok(())
    }

    /// The list of this name: in the first directory that has one, in the first file by name.
    pub(crate) fn find(directories: &[PathBuf], wanted: &str) -> Result<Self, NetworkError> {
        name::check_network(wanted)?;
        let mut known = Vec::new();
        let mut broken = Vec::new();
        for directory in directories {
            for path in files(directory)? {
                match read(&path) {
                    Ok(list) if list.name == wanted => return list.check_version(&path),
                    Ok(list) => known.push(list.name),
                    Err(reason) => {
                        tracing::debug!("CNI configuration {}: {reason}", path.display());
                        broken.push((path, reason));
                    }
                }
            }
        }
        // A file that would have been it, by its name, is the likely cause.
        if let Some((path, reason)) = broken.into_iter().find(|(path, _)| {
            path.file_stem()
                .is_some_and(|stem| stem.to_string_lossy().contains(wanted))
        }) {
            return Err(NetworkError::BadConfiguration { path, reason });
        }
        known.sort();
        known.dedup();
        Err(NetworkError::NoConfiguration {
            name: wanted.to_owned(),
            directories: joined(directories),
            known: if known.is_empty() {
                "where there is none".to_owned()
            } else {
                format!("only {}", known.join(", "))
            },
        })
    }

    fn check_version(self, path: &Path) -> Result<Self, NetworkError> {
        if VERSIONS.contains(&self.cni_version.as_str()) {
            return Ok(self);
        }
        Err(NetworkError::BadConfiguration {
            path: path.to_owned(),
            reason: format!(
                "its cniVersion {} is not understood; these are: {}",
                self.cni_version,
                VERSIONS.join(", ")
            ),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn plugins(&self) -> &[Map<String, Value>] {
        &self.plugins
    }

    pub(crate) const fn disables_check(&self) -> bool {
        self.disable_check
    }

    /// Major and minor version.
    pub(crate) fn version(&self) -> (u32, u32) {
        let mut parts = self
            .cni_version
            .split('.')
            .map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    }

    /// Whether a plugin has a capability.
    pub(crate) fn has_capability(&self, capability: &str) -> bool {
        self.plugins
            .iter()
            .any(|plugin| plugin_has(plugin, capability))
    }

    /// What a plugin is given: its configuration with the list's name and version, what is asked of its capabilities, and
    /// the result before.
    pub(crate) fn input(
        &self,
        plugin: &Map<String, Value>,
        capabilities: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Value {
        let mut input = plugin.clone();
        input.insert("cniVersion".to_owned(), self.cni_version.clone().into());
        input.insert("name".to_owned(), self.name.clone().into());
        input.remove("capabilities");
        let asked: Map<String, Value> = capabilities
            .iter()
            .filter(|(capability, _)| plugin_has(plugin, capability))
            .map(|(capability, value)| (capability.clone(), value.clone()))
            .collect();
        if !asked.is_empty() {
            input.insert("runtimeConfig".to_owned(), asked.into());
        }
        if let Some(previous) = previous {
            input.insert("prevResult".to_owned(), previous.clone());
        }
        input.into()
    }
}

fn bad_name(name: &str) -> String {
    format!("its name {} is not valid", name::shorten(name))
}

/// The type of a plugin of a list that was checked.
pub(crate) fn plugin_type(plugin: &Map<String, Value>) -> &str {
    plugin
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Directories, for people.
pub(crate) fn joined(directories: &[PathBuf]) -> String {
    let shown: Vec<String> = directories
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    shown.join(", ")
}

fn plugin_has(plugin: &Map<String, Value>, capability: &str) -> bool {
    is_true(
        plugin
            .get("capabilities")
            .and_then(|capabilities| capabilities.get(capability)),
    )
}

fn is_true(value: Option<&Value>) -> bool {
    value == Some(&Value::Bool(true))
}

/// The version to speak: since 1.1 a configuration may offer several, of which the newest that is understood counts.
fn version_of(value: &Map<String, Value>) -> Result<String, String> {
    let stated = match value.get("cniVersion") {
        None => UNVERSIONED.to_owned(),
        Some(Value::String(version)) => version.clone(),
        Some(_) => return Err("its cniVersion is not text".to_owned()),
    };
    let offered = match value.get("cniVersions") {
        Some(Value::Array(versions)) => versions.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let newest = VERSIONS
        .iter()
        .rev()
        .find(|version| offered.contains(*version));
    Ok(newest.map_or(stated, |version| (*version).to_owned()))
}

fn read(path: &Path) -> Result<ConfigurationList, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    if !is_file {
        return Err("it is not a file".to_owned());
    }
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("it is larger than {MAX_FILE} bytes"));
    }
    ConfigurationList::parse(&bytes)
}

/// The configuration files of a directory, by name. A directory that does not exist has none.
fn files(directory: &Path) -> Result<Vec<PathBuf>, NetworkError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(NetworkError::BadConfiguration {
                path: directory.to_owned(),
                reason: error.to_string(),
            });
        }
    };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension().is_some_and(|extension| {
                ["conflist", "conf", "json"]
                    .iter()
                    .any(|known| extension == *known)
            })
        })
        .take(MAX_FILES)
        .collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn list(value: Value) -> ConfigurationList {
        ConfigurationList::parse(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn single_configuration_is_a_list_of_one() {
        let list =
            list(json!({"cniVersion": "1.0.0", "name": "web", "type": "bridge", "bridge": "cni0"}));

        assert_eq!(list.name(), "web");
        assert_eq!(plugin_type(&list.plugins()[0]), "bridge");
        assert_eq!(list.plugins()[0]["bridge"], "cni0");
    }

    #[rstest]
    #[case::nothing("", "no JSON object")]
    #[case::list("[]", "no JSON object")]
    #[case::no_name(r#"{"type":"a"}"#, "no name")]
    #[case::name_is_path(r#"{"name":"../a","type":"a"}"#, "not valid")]
    #[case::name_is_number(r#"{"name":1,"type":"a"}"#, "not valid")]
    #[case::no_type(r#"{"name":"a"}"#, "no type")]
    #[case::type_is_path(r#"{"name":"a","type":"../../bin/sh"}"#, "not the name of a program")]
    #[case::type_is_parent(r#"{"name":"a","type":".."}"#, "not the name of a program")]
    #[case::type_is_empty(r#"{"name":"a","type":""}"#, "not the name of a program")]
    #[case::no_plugins(r#"{"name":"a","plugins":[]}"#, "0 plugins")]
    #[case::plugins_is_text(r#"{"name":"a","plugins":"bridge"}"#, "not a list")]
    #[case::plugin_is_text(r#"{"name":"a","plugins":["bridge"]}"#, "not an object")]
    #[case::version_is_number(r#"{"cniVersion":1,"name":"a","type":"a"}"#, "not text")]
    fn broken_configuration_is_told(#[case] text: &str, #[case] reason: &str) {
        let error = ConfigurationList::parse(text.as_bytes()).unwrap_err();

        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn newest_version_of_those_offered_is_spoken() {
        let list = list(json!({
            "cniVersion": "0.4.0", "cniVersions": ["0.4.0", "1.0.0", "9.0.0"], "name": "a", "type": "a"
        }));

        assert_eq!(list.version(), (1, 0));
    }

    #[test]
    fn plugin_is_given_what_it_can_do_and_what_was_before() {
        let list = list(json!({
            "cniVersion": "1.0.0", "name": "web", "plugins": [
                {"type": "bridge", "capabilities": {"ips": true, "mac": false}},
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ]
        }));
        let capabilities = json!({"ips": ["10.0.0.2/24"], "mac": "02:00:00:00:00:01"});
        let capabilities = capabilities.as_object().unwrap();

        let first = list.input(&list.plugins()[0], capabilities, None);
        let second = list.input(&list.plugins()[1], capabilities, Some(&json!({"ips": []})));

        assert_eq!(
            first,
            json!({"cniVersion": "1.0.0", "name": "web", "type": "bridge", "runtimeConfig": {"ips": ["10.0.0.2/24"]}})
        );
        assert_eq!(
            second,
            json!({"cniVersion": "1.0.0", "name": "web", "type": "portmap", "prevResult": {"ips": []}})
        );
    }

    #[test]
    fn network_is_found_by_its_name_in_the_first_directory_that_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let directories = [
            directory.path().join("first"),
            directory.path().join("second"),
        ];
        fs::create_dir(&directories[1]).unwrap();
        fs::write(
            directories[1].join("20.conf"),
            r#"{"cniVersion":"1.0.0","name":"web","type":"later"}"#,
        )
        .unwrap();
        fs::write(
            directories[1].join("10.conf"),
            r#"{"cniVersion":"1.0.0","name":"web","type":"first"}"#,
        )
        .unwrap();
        fs::write(directories[1].join("00.conf"), "broken").unwrap();
        fs::write(directories[1].join("readme.txt"), "nothing").unwrap();

        let found = ConfigurationList::find(&directories, "web").unwrap();
        let missing = ConfigurationList::find(&directories, "other")
            .unwrap_err()
            .to_string();

        assert_eq!(plugin_type(&found.plugins()[0]), "first");
        assert!(missing.contains(", only web; other"), "{missing}");
    }

    #[test]
    fn broken_file_of_the_wanted_name_is_told() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("10-web.conflist"), "{").unwrap();

        let error = ConfigurationList::find(&[directory.path().to_owned()], "web").unwrap_err();

        assert!(
            matches!(error, NetworkError::BadConfiguration { .. }),
            "{error}"
        );
    }

    #[test]
    fn version_without_a_known_form_of_results_is_refused_by_its_number() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(
            directory.path().join("a.conf"),
            r#"{"name":"a","type":"a"}"#,
        )
        .unwrap();

        let error = ConfigurationList::find(&[directory.path().to_owned()], "a")
            .unwrap_err()
            .to_string();

        assert!(error.contains("cniVersion 0.1.0"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = ConfigurationList::parse(&bytes);
        }
    }
}
