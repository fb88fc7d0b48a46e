// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file's keys, as they are written.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_network::{Network, NetworkConfig, Subnet};
use coracle_oci::layer::Options as UnpackOptions;
use coracle_oci::plan::{MAXIMUM_MEMORY_MIB, MINIMUM_MEMORY_MIB};
use coracle_registry::Options as RegistryOptions;
use serde::{Deserialize, Serialize};

use super::{Config, Run};

/// The file. Every key may be left out.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct File {
    run: RunKeys,
    log: LogKeys,
    image: ImageKeys,
    registry: RegistryKeys,
    network: NetworkKeys,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct RunKeys {
    memory: u64,
    cpus: u32,
    boot_timeout: u32,
    network: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct LogKeys {
    limit: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct ImageKeys {
    limit: u32,
    entries: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct RegistryKeys {
    insecure: Vec<String>,
    parallel: usize,
    tries: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct NetworkKeys {
    ipv4: String,
    ipv6: String,
    isolate: bool,
    cni_configurations: Vec<PathBuf>,
    cni_plugins: Vec<PathBuf>,
    cni_deadline: u32,
}

impl Default for RunKeys {
    fn default() -> Self {
        Self {
            memory: 256,
            cpus: 1,
            boot_timeout: 60,
            network: vec!["host-nat".to_owned()],
        }
    }
}

impl Default for LogKeys {
    fn default() -> Self {
        Self { limit: 16 }
    }
}

impl Default for ImageKeys {
    fn default() -> Self {
        Self {
            limit: 64,
            entries: 2_000_000,
        }
    }
}

impl Default for RegistryKeys {
    fn default() -> Self {
        Self {
            insecure: Vec::new(),
            parallel: 3,
            tries: 5,
        }
    }
}

impl Default for NetworkKeys {
    fn default() -> Self {
        let network = NetworkConfig::default();
        Self {
            ipv4: AUTO.to_owned(),
            ipv6: AUTO.to_owned(),
            isolate: network.isolate,
            cni_configurations: network.cni_configurations,
            cni_plugins: network.cni_plugins,
            cni_deadline: 60,
        }
    }
}

/// The most blobs at once: each has a connection and a thread of its own.
const MAXIMUM_PARALLEL: usize = 64;
const AUTO: &str = "auto";
const OFF: &str = "off";

impl File {
    /// Every key that there is, with its default.
    pub fn known() -> Result<toml::Table> {
        toml::Table::try_from(Self::default()).context("the defaults cannot be written down")
    }

    /// What the keys mean, for a host whose things are kept at `root`.
    pub fn config(self, root: &Path) -> Result<Config> {
        let run = self.run;
        let cpus = u8::try_from(run.cpus)
            .ok()
            .filter(|cpus| (1..=32).contains(cpus))
            .with_context(|| format!("run.cpus is {}, and should be 1 to 32", run.cpus))?;
        ensure!(
            (MINIMUM_MEMORY_MIB..=MAXIMUM_MEMORY_MIB).contains(&run.memory),
            "run.memory is {} MiB, and should be {MINIMUM_MEMORY_MIB} to {MAXIMUM_MEMORY_MIB}",
            run.memory
        );
        for (key, unit, value) in [
            ("run.boot_timeout", " s", u64::from(run.boot_timeout)),
            ("registry.tries", "", self.registry.tries.into()),
            ("log.limit", " MiB", self.log.limit.into()),
            ("image.limit", " GiB", self.image.limit.into()),
            ("image.entries", "", self.image.entries),
            (
                "network.cni_deadline",
                " s",
                self.network.cni_deadline.into(),
            ),
        ] {
            ensure!(value > 0, "{key} is 0{unit}, and should be 1 or more");
        }
        let network: Vec<_> = run
            .network
            .iter()
            .map(|name| name.parse())
            .collect::<Result<_, _>>()
            .context("run.network names none")?;
        ensure!(
            network.len() <= 1 || !network.contains(&Network::None),
            "run.network has none beside others"
        );
        let parallel = NonZeroUsize::new(self.registry.parallel)
            .filter(|parallel| parallel.get() <= MAXIMUM_PARALLEL)
            .with_context(|| {
                let parallel = self.registry.parallel;
                format!("registry.parallel is {parallel}, and should be 1 to {MAXIMUM_PARALLEL}")
            })?;
        let mut registry = RegistryOptions::from_environment();
        registry.insecure = self.registry.insecure;
        registry.parallel = parallel;
        registry.retry.tries = self.registry.tries;
        let mut unpack = UnpackOptions::default();
        unpack.limits.bytes = u64::from(self.image.limit) << 30;
        unpack.limits.entries = self.image.entries;
        Ok(Config {
            run: Run {
                memory_mib: run.memory,
                cpus,
                boot_timeout: Duration::from_secs(run.boot_timeout.into()),
                network,
            },
            log_limit: u64::from(self.log.limit) << 20,
            network: NetworkConfig {
                state: root.join("network"),
                ipv4: subnet(&self.network.ipv4).context("network.ipv4")?,
                ipv6: subnet(&self.network.ipv6).context("network.ipv6")?,
                isolate: self.network.isolate,
                cni_configurations: self.network.cni_configurations,
                cni_plugins: self.network.cni_plugins,
                cni_deadline: Duration::from_secs(self.network.cni_deadline.into()),
                ..NetworkConfig::default()
            },
            unpack,
            registry,
        })
    }
}

fn subnet<N>(text: &str) -> Result<Subnet<N>>
where
    N: FromStr,
    N::Err: std::error::Error + Send + Sync + 'static,
{
    match text {
        AUTO => Ok(Subnet::Auto),
        OFF => Ok(Subnet::Off),
        text => text.parse().map(Subnet::Given).with_context(|| {
            format!("'{text}' is not a subnet such as 10.88.0.0/16, {AUTO} or {OFF}")
        }),
    }
}
