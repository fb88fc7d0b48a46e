// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names: what the guest's resolv.conf is to say, from the host's.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

use crate::error::NetworkError;
use crate::name::shorten;
use crate::request::NetworkConfig;

/// A resolver configuration larger than this is read no further.
const MAX_FILE: u64 = 64 << 10;

/// glibc uses three name servers; others a few more.
const MAX_NAMESERVERS: usize = 8;

/// Search domains and options that are kept.
const MAX_WORDS: usize = 64;

/// Longest name in the domain name system.
const MAX_WORD: usize = 255;

/// What a resolver is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers that the guest can reach, best first. None: it has no names but those in its hosts file.
    pub nameservers: Vec<IpAddr>,
    /// Domains in which short names are looked up.
    pub search: Vec<String>,
    /// Options as in resolv.conf, such as `ndots:2`.
    pub options: Vec<String>,
}

/// What a user says of names; each list that is not empty replaces what the network or the host says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsOverrides {
    /// Name servers.
    pub nameservers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl DnsOverrides {
    /// Refuses what would be more than it says once it is written down.
    pub(crate) fn check(&self) -> Result<(), NetworkError> {
        let words = [
            ("search domain", &self.search),
            ("resolver option", &self.options),
        ];
        for (what, words) in words {
            if let Some(word) = words.iter().find(|word| !is_word(word)) {
                return Err(NetworkError::BadDns {
                    what,
                    text: shorten(word),
                });
            }
        }
        Ok(())
    }
}

impl Dns {
    /// The same as the text of a resolv.conf.
    #[must_use]
    pub fn to_resolv_conf(&self) -> String {
        let mut text = String::new();
        for server in &self.nameservers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        for (keyword, words) in [("search", &self.search), ("options", &self.options)] {
            if !words.is_empty() {
                text.push_str(&format!("{keyword} {}\n", words.join(" ")));
            }
        }
        text
    }

    fn overridden(mut self, overrides: &DnsOverrides) -> Self {
        if !overrides.nameservers.is_empty() {
            self.nameservers.clone_from(&overrides.nameservers);
        }
        if !overrides.search.is_empty() {
            self.search.clone_from(&overrides.search);
        }
        if !overrides.options.is_empty() {
            self.options.clone_from(&overrides.options);
        }
        self
    }
}

/// What the guest is told: the user's word before the network's (CNI) before the host's.
pub(crate) fn decide(
    config: &NetworkConfig,
    network: Option<Dns>,
    overrides: &DnsOverrides,
) -> Dns {
    let dns = match network {
        Some(dns) if !dns.nameservers.is_empty() => dns,
        _ => of_host(config),
    };
    dns.overridden(overrides)
}

/// The host's name servers without those on its loopback interface, which a guest would ask in vain: behind
/// systemd's stub stands a file with the real ones.
fn of_host(config: &NetworkConfig) -> Dns {
    let mut dns = parse(&read_bounded(&config.resolv_conf));
    let has_servers = !dns.nameservers.is_empty();
    dns.nameservers.retain(is_reachable);
    if dns.nameservers.is_empty() && has_servers {
        let mut upstream = parse(&read_bounded(&config.resolv_conf_upstream));
        upstream.nameservers.retain(is_reachable);
        dns.nameservers = upstream.nameservers;
        if dns.search.is_empty() {
            dns.search = upstream.search;
        }
    }
    if dns.nameservers.is_empty() {
        tracing::warn!(
            "{} names no name server that a guest can reach: the guest resolves no names unless one is given",
            config.resolv_conf.display()
        );
    }
    dns
}

fn is_reachable(server: &IpAddr) -> bool {
    let is_link_local = matches!(server, IpAddr::V6(address) if address.is_unicast_link_local());
    !server.is_loopback() && !server.is_unspecified() && !server.is_multicast() && !is_link_local
}

/// A file that is missing, or no text, says nothing.
fn read_bounded(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => {
            if let Err(error) = file.take(MAX_FILE).read_to_end(&mut bytes) {
                tracing::warn!("{}: {error}", path.display());
            }
        }
        Err(error) => tracing::debug!("{}: {error}", path.display()),
    }
    bytes
}

/// Reads a resolv.conf as glibc does: unknown lines are passed over, the last `search` or `domain` counts, options add up.
#[must_use]
pub fn parse(bytes: &[u8]) -> Dns {
    let mut dns = Dns::default();
    for line in String::from_utf8_lossy(bytes).lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                // A link-local server's zone (`fe80::1%eth0`) names an interface of the host: it does not parse.
                let server = words.next().and_then(|word| word.parse().ok());
                if let Some(server) = server
                    && dns.nameservers.len() < MAX_NAMESERVERS
                    && !dns.nameservers.contains(&server)
                {
                    dns.nameservers.push(server);
                }
            }
            Some("search") => dns.search = kept(words),
            Some("domain") => dns.search = kept(words.take(1)),
            Some("options") => {
                dns.options.extend(kept(words));
                dns.options.truncate(MAX_WORDS);
            }
            _ => {}
        }
    }
    dns
}

/// Words that can be written into a resolv.conf again, at most so many.
pub(crate) fn kept<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    words
        .filter(|word| is_word(word) && *word != ".")
        .take(MAX_WORDS)
        .map(str::to_owned)
        .collect()
}

/// Whether it is one word of a resolv.conf, whoever writes it: nothing that would start another word or line.
pub(crate) fn is_word(word: &str) -> bool {
    !word.is_empty()
        && word.len() <= MAX_WORD
        && word
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'#' | b';'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn servers(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|server| server.parse().unwrap()).collect()
    }

    /// A host with these two files.
    fn host(directory: &Path, resolv_conf: &str, upstream: &str) -> NetworkConfig {
        let config = NetworkConfig {
            resolv_conf: directory.join("resolv.conf"),
            resolv_conf_upstream: directory.join("upstream"),
            ..NetworkConfig::default()
        };
        std::fs::write(&config.resolv_conf, resolv_conf).unwrap();
        std::fs::write(&config.resolv_conf_upstream, upstream).unwrap();
        config
    }

    #[test]
    fn resolv_conf_is_read_as_glibc_reads_it() {
        let text = "# comment\nnameserver 192.0.2.1\nnameserver  2001:db8::1 ; second\nnameserver nonsense\n\
                    domain example.org\nsearch a.example b.example\noptions ndots:2\noptions edns0 rotate\nlookup file\n";

        let dns = parse(text.as_bytes());

        assert_eq!(dns.nameservers, servers(&["192.0.2.1", "2001:db8::1"]));
        assert_eq!(dns.search, ["a.example", "b.example"]);
        assert_eq!(dns.options, ["ndots:2", "edns0", "rotate"]);
    }

    #[rstest]
    #[case::real("nameserver 192.0.2.1\n", "nameserver 192.0.2.9\n", &["192.0.2.1"])]
    #[case::stub("nameserver 127.0.0.53\n", "nameserver 192.0.2.9\nnameserver 127.0.0.1\n", &["192.0.2.9"])]
    #[case::stub_before_real("nameserver 127.0.0.1\nnameserver 192.0.2.1\n", "", &["192.0.2.1"])]
    #[case::stub_of_ipv6("nameserver ::1\n", "nameserver 2001:db8::9\n", &["2001:db8::9"])]
    #[case::nothing_behind("nameserver 127.0.0.1\n", "", &[])]
    #[case::empty("", "nameserver 192.0.2.9\n", &[])]
    fn servers_are_those_that_a_guest_reaches(
        #[case] resolv_conf: &str,
        #[case] upstream: &str,
        #[case] expected: &[&str],
    ) {
        let directory = tempfile::tempdir().unwrap();
        let config = host(directory.path(), resolv_conf, upstream);

        let dns = decide(&config, None, &DnsOverrides::default());

        assert_eq!(dns.nameservers, servers(expected));
    }

    #[test]
    fn users_word_comes_before_the_networks_before_the_hosts() {
        let directory = tempfile::tempdir().unwrap();
        let config = host(
            directory.path(),
            "nameserver 192.0.2.1\nsearch host.example\n",
            "",
        );
        let network = Dns {
            nameservers: servers(&["192.0.2.2"]),
            search: vec!["network.example".into()],
            options: Vec::new(),
        };
        let overrides = DnsOverrides {
            search: vec!["user.example".into()],
            ..DnsOverrides::default()
        };

        let dns = decide(&config, Some(network), &overrides);

        assert_eq!(dns.nameservers, servers(&["192.0.2.2"]));
        assert_eq!(dns.search, ["user.example"]);
    }

    #[rstest]
    #[case::line("a.example\nnameserver 192.0.2.9")]
    #[case::nothing("")]
    #[case::two("a.example b.example")]
    #[case::comment("a.example;b")]
    #[case::long(&"a".repeat(256))]
    fn what_is_not_one_word_is_refused(#[case] word: &str) {
        let search = DnsOverrides {
            search: vec!["a.example".into(), word.into()],
            ..DnsOverrides::default()
        };
        let option = DnsOverrides {
            options: vec![word.into()],
            ..DnsOverrides::default()
        };

        let errors = [search, option].map(|overrides| overrides.check().unwrap_err().to_string());

        assert!(errors[0].starts_with("search domain \""), "{}", errors[0]);
        assert!(errors[1].starts_with("resolver option \""), "{}", errors[1]);
    }

    #[test]
    fn missing_resolv_conf_gives_no_server() {
        let config = NetworkConfig {
            resolv_conf: "/nonexistent".into(),
            ..NetworkConfig::default()
        };

        assert_eq!(
            decide(&config, None, &DnsOverrides::default()),
            Dns::default()
        );
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_bounded_answer(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let dns = parse(&bytes);

            prop_assert!(dns.nameservers.len() <= MAX_NAMESERVERS && dns.search.len() <= MAX_WORDS && dns.options.len() <= MAX_WORDS);
        }

        #[test]
        fn what_was_read_is_read_again_the_same(bytes in "((nameserver|search|options|domain) [ -~]{0,20}\n){0,8}") {
            let dns = parse(bytes.as_bytes());

            prop_assert_eq!(parse(dns.to_resolv_conf().as_bytes()), dns);
        }
    }
}
