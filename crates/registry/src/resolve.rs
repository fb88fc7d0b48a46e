// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Addresses of hosts.
//!
//! A statically linked program should not call the C library's resolver: for names it loads the host's modules
//! (`nsswitch.conf`), which belong to another build of that library. There `getent`, the host's own, is asked.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use coracle_subprocess::{Bounds, Cause, run};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::host;

/// Most addresses that are tried.
const ADDRESS_LIMIT: usize = 16;
/// Most bytes of `getent`'s answer.
const ANSWER_LIMIT: usize = 64 << 10;

/// Finds addresses as the host does.
#[derive(Debug)]
pub(crate) struct HostResolver;

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ResolveError(String);

impl Resolver for HostResolver {
    fn resolve(
        &self,
        uri: &Uri,
        _: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let failed = |reason: String| ureq::Error::Other(Box::new(ResolveError(reason)));
        let port = uri
            .port_u16()
            .unwrap_or(if uri.scheme_str() == Some("https") {
                443
            } else {
                80
            });
        let name = uri.host().unwrap_or_default();
        let name = name
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'))
            .unwrap_or(name);
        let found = addresses(name, *timeout.after).map_err(failed)?;
        let mut addresses = self.empty();
        for address in found.into_iter().take(ADDRESS_LIMIT) {
            addresses.push(SocketAddr::new(address, port));
        }
        if addresses.is_empty() {
            return Err(failed("its name has no address".to_owned()));
        }
        Ok(addresses)
    }
}

fn addresses(name: &str, deadline: Duration) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    if !host::is_name(name) {
        return Err("its name is none".to_owned());
    }
    if cfg!(target_feature = "crt-static") {
        by_getent(name, deadline)
    } else {
        by_library(name, deadline)
    }
}

/// Asks the C library, on a thread that is left behind where it does not answer.
fn by_library(name: &str, deadline: Duration) -> Result<Vec<IpAddr>, String> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let query = (name.to_owned(), 0);
    let work = move || {
        let found = query
            .to_socket_addrs()
            .map(|found| found.map(|address| address.ip()).collect());
        let _ = sender.send(found);
    };
    thread::Builder::new()
        .spawn(work)
        .map_err(|error| format!("no thread to look it up: {error}"))?;
    match receiver.recv_timeout(deadline) {
        Ok(found) => found.map_err(|error: io::Error| error.to_string()),
        Err(_) => Err(late(deadline)),
    }
}

/// Asks `getent ahosts`: lines of an address, a socket type and a name.
fn by_getent(name: &str, deadline: Duration) -> Result<Vec<IpAddr>, String> {
    let mut command = Command::new("getent");
    command.args(["ahosts", name]);
    let bounds = Bounds {
        deadline,
        stdout: ANSWER_LIMIT,
        stderr: 0,
        cancel: None,
    };
    match run(command, b"", &bounds) {
        Ok(answer) if answer.status.success() => Ok(parse(&answer.stdout)),
        Ok(_) => Err("its name is not known".to_owned()),
        Err(failure) if matches!(failure.cause, Cause::Deadline(_)) => Err(late(deadline)),
        Err(failure) => Err(failure.to_string()),
    }
}

fn parse(output: &[u8]) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(output).lines() {
        // With a zone (`fe80::1%eth0`) it is no address that is of use here.
        let address = line
            .split_whitespace()
            .next()
            .and_then(|word| word.parse().ok());
        if let Some(address) = address
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

fn late(deadline: Duration) -> String {
    format!("no answer within {:.1} s", deadline.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    #[test]
    fn both_ways_find_this_host() {
        let localhost = |ip: &IpAddr| ip.is_loopback();

        assert!(
            by_library("localhost", DEADLINE)
                .unwrap()
                .iter()
                .any(localhost)
        );
        assert!(
            by_getent("localhost", DEADLINE)
                .unwrap()
                .iter()
                .any(localhost)
        );
    }

    #[test]
    fn both_ways_tell_an_unknown_name() {
        // Reserved to be unknown (RFC 6761, 6.4).
        assert!(by_library("registry.invalid", DEADLINE).is_err());
        assert_eq!(
            by_getent("registry.invalid", DEADLINE),
            Err("its name is not known".to_owned())
        );
    }

    #[test]
    fn address_is_not_looked_up() {
        assert_eq!(
            addresses("::1", Duration::ZERO).unwrap(),
            ["::1".parse::<IpAddr>().unwrap()]
        );
    }

    #[test]
    fn option_is_no_name() {
        assert!(addresses("--help", DEADLINE).is_err());
    }

    #[test]
    fn answer_is_read_without_doubles() {
        let output =
            b"10.0.0.1  STREAM a\n10.0.0.1 DGRAM\nfe80::1%eth0 STREAM\nfd00::1 STREAM\n\n?\n";

        let expected: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(parse(output), expected);
    }
}
