// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a client works: whom it trusts, what it presents, how much it takes and how long it waits.

use std::collections::BTreeMap;
use std::env;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::credentials::Credentials;

/// Directories in which container tools look for a registry's own authorities, in `HOST[:PORT]/*.crt`.
const CERTIFICATE_DIRECTORIES: [&str; 3] = [
    "/etc/docker/certs.d",
    "/etc/containers/certs.d",
    "/etc/coracle/certs.d",
];

/// What a [`Client`](crate::Client) goes by. The default reads no file and no environment.
#[derive(Clone, Debug)]
pub struct Options {
    /// Credentials by registry (`ghcr.io`, `localhost:5000`); they go before those of files, and to no other registry.
    pub credentials: BTreeMap<String, Credentials>,
    /// Files in the form of docker's `config.json`, looked at in this order. Those that do not exist are passed over.
    pub credential_files: Vec<PathBuf>,
    /// Directories with further trusted authorities for single registries, in `HOST[:PORT]/*.crt`.
    pub certificate_directories: Vec<PathBuf>,
    /// Files with further trusted authorities for all registries, in PEM.
    pub certificate_files: Vec<PathBuf>,
    /// Registries (`HOST[:PORT]`) to speak plain HTTP to, where anyone on the way reads and changes what is sent. One on
    /// this machine needs not be listed to be asked without TLS, but to be shown credentials then.
    pub insecure: Vec<String>,
    /// Whether the environment's proxy settings (`HTTPS_PROXY`, `NO_PROXY` ...) are heeded. A loopback host never has one.
    pub proxy_from_environment: bool,
    /// Most blobs that are pulled at once.
    pub parallel: NonZeroUsize,
    /// What is refused for its size.
    pub limits: Limits,
    /// What is not waited for any longer.
    pub timeouts: Timeouts,
    /// How often and how long a request that may yet succeed is made again.
    pub retry: Retry,
    /// What the client calls itself.
    pub user_agent: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            credentials: BTreeMap::new(),
            credential_files: Vec::new(),
            certificate_directories: Vec::new(),
            certificate_files: Vec::new(),
            insecure: Vec::new(),
            proxy_from_environment: false,
            parallel: NonZeroUsize::MIN.saturating_add(2),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            retry: Retry::default(),
            user_agent: concat!("coracle/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

impl Options {
    /// As other container tools of this user go by: `$REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json` or
    /// `~/.docker/config.json`, `$XDG_RUNTIME_DIR/containers/auth.json`, the directories `certs.d` in `/etc`, and
    /// the environment's proxies.
    pub fn from_environment() -> Self {
        let variable = |name| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let docker = variable("DOCKER_CONFIG")
            .or_else(|| variable("HOME").map(|home| home.join(".docker")))
            .map(|directory| directory.join("config.json"));
        let podman = variable("XDG_RUNTIME_DIR").map(|run| run.join("containers/auth.json"));
        let files = [variable("REGISTRY_AUTH_FILE"), docker, podman];
        Self {
            credential_files: files.into_iter().flatten().collect(),
            certificate_directories: CERTIFICATE_DIRECTORIES.map(PathBuf::from).to_vec(),
            proxy_from_environment: true,
            ..Self::default()
        }
    }
}

/// What is refused for its size. Each bounds what a registry can make this process hold or do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of an index, a manifest or an image's config. 4 MiB, as registries are told to take
    /// (distribution-spec, "Pushing manifests").
    pub document: u64,
    /// Most bytes of a token server's answer.
    pub token: u64,
    /// Most bytes of an answer's headers.
    pub headers: usize,
    /// Most redirects that one request follows.
    pub redirects: u32,
    /// Most layers of an image.
    pub layers: usize,
    /// Most indexes and manifests that are read to find an image.
    pub documents: usize,
    /// Most bytes of an image's layers, compressed as they are.
    pub image: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            document: 4 << 20,
            token: 64 << 10,
            headers: 64 << 10,
            redirects: 5,
            layers: 512,
            documents: 16,
            image: 64 << 30,
        }
    }
}

/// What is not waited for any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To find a host's addresses.
    pub resolve: Duration,
    /// To connect to a host, with TLS.
    pub connect: Duration,
    /// For an answer's headers, and for all of a document.
    pub answer: Duration,
    /// For a blob's next bytes; also the time in which a few KiB have to come, lest single bytes keep a pull alive.
    pub stall: Duration,
    /// For a credential helper.
    pub helper: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            resolve: Duration::from_secs(15),
            connect: Duration::from_secs(20),
            answer: Duration::from_secs(60),
            stall: Duration::from_secs(30),
            helper: Duration::from_secs(60),
        }
    }
}

/// How often, and how long, a request that may yet succeed is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Most tries, the first with them. A blob that goes on by a megabyte starts anew.
    pub tries: u32,
    /// Wait before the second try, without chance; doubled before each further one.
    pub first: Duration,
    /// Longest of these waits. A registry that asks for a longer one (`Retry-After`) gets it.
    pub longest: Duration,
    /// Longest time from the first failure to the last try.
    pub total: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            tries: 5,
            first: Duration::from_millis(500),
            longest: Duration::from_secs(15),
            total: Duration::from_secs(120),
        }
    }
}
