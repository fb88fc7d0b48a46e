// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hosts with an optional port, as they stand in names and addresses.

use std::net::{IpAddr, Ipv6Addr};

use coracle_oci::image::Name;

/// The registry whose server has another name than itself.
const DEFAULT_REGISTRY: &str = "docker.io";
/// That server.
const DEFAULT_REGISTRY_SERVER: &str = "registry-1.docker.io";

/// Longest host name, in bytes (RFC 1035, 2.3.4).
const NAME_LIMIT: usize = 253;

/// Host, and port where one is given, that serves the registry of an image.
pub(crate) fn server(name: &Name) -> &str {
    match name.registry() {
        DEFAULT_REGISTRY => DEFAULT_REGISTRY_SERVER,
        registry => registry,
    }
}

/// Parts `host:port` into the host, without brackets, and the port.
pub(crate) fn split(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            match port {
                "" => (host, None),
                _ => (host, Some(port.strip_prefix(':')?)),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    match port {
        // Not `+80`, which the number's parser takes.
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some((host, Some(port.parse().ok()?)))
        }
        Some(_) => None,
        None => Some((host, None)),
    }
}

/// Whether the text is a host name or IP address with an optional port. What is one can be a directory's name.
pub(crate) fn is_valid(text: &str) -> bool {
    match split(text) {
        Some((host, _)) if text.starts_with('[') => host.parse::<Ipv6Addr>().is_ok(),
        Some((host, _)) => is_name(host),
        None => false,
    }
}

/// Whether the text is a host name or an IPv4 address.
pub(crate) fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        !label.is_empty()
            && label.bytes().all(|byte| is_word(byte) || byte == b'-')
            && !label.starts_with('-')
    };
    let text = text.strip_suffix('.').unwrap_or(text);
    text.len() <= NAME_LIMIT && text.split('.').all(is_label)
}

/// Whether `host:port` is this machine, so that nobody else sees what is sent there.
pub(crate) fn is_loopback(text: &str) -> bool {
    let Some((host, _)) = split(text) else {
        return false;
    };
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("busybox", "registry-1.docker.io")]
    #[case("ghcr.io/a/b", "ghcr.io")]
    #[case("localhost:5000/a", "localhost:5000")]
    fn registry_has_a_server(#[case] name: &str, #[case] expected: &str) {
        assert_eq!(server(&name.parse().unwrap()), expected);
    }

    #[rstest]
    #[case("ghcr.io", true)]
    #[case("ghcr.io:443", true)]
    #[case("my_registry:5000", true)]
    #[case("10.0.0.1:5000", true)]
    #[case("[fd00::1]:5000", true)]
    #[case("[fd00::1]", true)]
    #[case("", false)]
    #[case("..", false)]
    #[case("a..b", false)]
    #[case("-a.io", false)]
    #[case("a/b", false)]
    #[case("a@b", false)]
    #[case("a:+80", false)]
    #[case("a:99999", false)]
    #[case("a:", false)]
    #[case("[a]:80", false)]
    #[case("[::1]80", false)]
    #[case("::1", false)]
    fn hosts_are_told_from_other_text(#[case] text: &str, #[case] valid: bool) {
        assert_eq!(is_valid(text), valid);
    }

    #[rstest]
    #[case("localhost", true)]
    #[case("LOCALHOST:5000", true)]
    #[case("127.0.0.1:5000", true)]
    #[case("127.8.9.1", true)]
    #[case("[::1]:5000", true)]
    #[case("localhost.example.org", false)]
    #[case("127.0.0.1.example.org", false)]
    #[case("10.0.0.1", false)]
    #[case("[::2]", false)]
    #[case("0.0.0.0", false)]
    fn loopback_is_this_machine_alone(#[case] text: &str, #[case] loopback: bool) {
        assert_eq!(is_loopback(text), loopback);
    }
}
