// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What this host lacks for the default network, before anybody starts a machine.

use std::fs;
use std::path::Path;

use crate::firewall::PREFIX;
use crate::netlink::Socket;
use crate::request::NetworkConfig;
use crate::sysctl;

/// Something that will not work, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What lacks, in a sentence.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
    /// Whether the default network does not work without it.
    pub is_fatal: bool,
}

/// Looks for what lacks. Changes nothing.
#[must_use]
pub fn check(config: &NetworkConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |is_fatal, problem: &str, remedy: &str| {
        findings.push(Finding {
            problem: problem.to_owned(),
            remedy: remedy.to_owned(),
            is_fatal,
        });
    };
    if !Path::new("/dev/net/tun").exists() {
        find(
            true,
            "/dev/net/tun does not exist",
            "load the kernel module tun: modprobe tun",
        );
    }
    let filter =
        Socket::netfilter().and_then(|mut socket| crate::firewall::is_present(&mut socket));
    if let Err(error) = filter {
        find(
            true,
            &format!("the kernel's packet filter nf_tables cannot be used: {error}"),
            "run as root, on a kernel with nf_tables (netdev too), nft_nat, nft_masq, nft_fib_inet and nft_ct",
        );
    }
    if !sysctl::has_ipv6() {
        find(
            false,
            "IPv6 is off on this host: machines get IPv4 alone",
            "set net.ipv6.conf.all.disable_ipv6=0 where it is wanted",
        );
    }
    // The kernel's old packet filter is beside the new one, and its rules are not ours to change.
    let has_legacy_filter = fs::read_to_string("/proc/thread-self/net/ip_tables_names")
        .is_ok_and(|names| names.lines().any(|name| name == "filter"));
    if has_legacy_filter {
        find(
            false,
            "rules of iptables-legacy are loaded; if their chain FORWARD drops by default, machines reach nothing outside",
            &format!(
                "iptables-legacy -I FORWARD -i {PREFIX}+ -j ACCEPT; iptables-legacy -I FORWARD -o {PREFIX}+ -j ACCEPT \
                 (and the same with ip6tables-legacy), or move to iptables-nft"
            ),
        );
    }
    if crate::dns::decide(config, None, &crate::dns::DnsOverrides::default())
        .nameservers
        .is_empty()
    {
        find(
            false,
            &format!(
                "{} names no name server that a machine can reach",
                config.resolv_conf.display()
            ),
            "name one there, or by the option for machines' name servers",
        );
    }
    findings
}
