// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Other programs' rules: which of them have a say in what this host forwards, and ours among them.

use std::io;

use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook, HookNumber, InetHookNumber, NfTablesMessage, RuleAttribute,
    RuleMessage,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};

use super::rule::{Direction, Is, interface_starts_with};
use super::{Batch, PREFIX, accept, batch, message};
use crate::netlink::Socket;

/// Marks our rules in other programs' chains.
const OPENING_COMMENT: &str = "coracle";

/// A chain of any program's.
struct Chain {
    family: NetfilterProtoFamily,
    table: String,
    chain: String,
    /// None for those that others jump to.
    hook: Option<HookNumber>,
    /// By policy.
    drops: bool,
}

impl Chain {
    fn is_at(&self, hook: InetHookNumber) -> bool {
        let is_ip = matches!(
            self.family,
            NetfilterProtoFamily::IPv4 | NetfilterProtoFamily::IPv6 | NetfilterProtoFamily::Inet
        );
        is_ip && self.hook == Some(HookNumber::Inet(hook))
    }

    fn drops_forwarded(&self) -> bool {
        self.drops && self.is_at(InetHookNumber::Forward)
    }

    /// Whether it is one that the programs `iptables` and `ip6tables` show, and that others add rules to.
    fn is_of_iptables(&self) -> bool {
        matches!(
            self.family,
            NetfilterProtoFamily::IPv4 | NetfilterProtoFamily::IPv6
        ) && self.table == "filter"
            && self.chain == "FORWARD"
    }
}

/// What there is of others that filters or translates forwarded packets, each by a name of its own.
pub(crate) fn forwarders(socket: &mut Socket) -> io::Result<Vec<String>> {
    let mut found: Vec<String> = chains(socket)?
        .into_iter()
        .filter(|chain| {
            chain.is_at(InetHookNumber::Forward) || chain.is_at(InetHookNumber::PostRouting)
        })
        .filter(|chain| !chain.table.starts_with(PREFIX))
        .map(|chain| format!("{} {} {}", u8::from(chain.family), chain.table, chain.chain))
        .collect();
    // The kernel's old packet filter is beside the new one.
    for names in ["ip_tables_names", "ip6_tables_names"] {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{names}"));
        found.extend(
            text.iter()
                .flat_map(|text| text.lines())
                .map(|table| format!("{names} {table}")),
        );
    }
    found.sort();
    Ok(found)
}

fn chains(socket: &mut Socket) -> io::Result<Vec<Chain>> {
    const NF_DROP: u32 = 0;
    let request = message(
        NetfilterProtoFamily::Unspec,
        NfTablesMessage::GetChain(ChainMessage {
            attributes: Vec::new(),
        }),
    );
    let mut found = Vec::new();
    for answer in socket.list(request)? {
        let NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(listed)) = answer.inner
        else {
            continue;
        };
        let mut chain = Chain {
            family: answer.header.family,
            table: String::new(),
            chain: String::new(),
            hook: None,
            drops: false,
        };
        for attribute in listed.attributes {
            match attribute {
                ChainAttribute::Table(name) => chain.table = name,
                ChainAttribute::Name(name) => chain.chain = name,
                ChainAttribute::Policy(policy) => chain.drops = policy == NF_DROP,
                ChainAttribute::Hook(parts) => {
                    chain.hook = parts.into_iter().find_map(|part| match part {
                        Hook::Number(number) => Some(number),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        found.push(chain);
    }
    Ok(found)
}

/// Where Docker has users put their rules; its own chains are made anew at any time.
const DOCKER_CHAIN: &str = "DOCKER-USER";

/// Accepting in our own table does not help against a chain that drops: Docker's. There, rules of ours go first.
pub(super) fn open_forwarding(socket: &mut Socket) -> io::Result<()> {
    let chains = chains(socket)?;
    for place in chains.iter().filter(|chain| chain.drops_forwarded()) {
        if !place.is_of_iptables() {
            tracing::warn!(
                "chain {} of nftables table {} drops what is forwarded: guests reach nothing unless it accepts \
                 interfaces {PREFIX}*",
                place.chain,
                place.table
            );
            continue;
        }
        let docker = chains.iter().find(|chain| {
            chain.family == place.family && chain.table == "filter" && chain.chain == DOCKER_CHAIN
        });
        let chain = docker.map_or(&place.chain, |docker| &docker.chain);
        if our_rules(socket, place.family, &place.table, chain)?.is_empty() {
            let mut batch = Batch::new(place.family, &place.table);
            for direction in [Direction::In, Direction::Out] {
                let rule = [
                    interface_starts_with(direction, Is::Equal, PREFIX),
                    accept(),
                ];
                batch.insert_rule(chain, rule, OPENING_COMMENT);
            }
            batch.commit(socket)?;
        }
    }
    Ok(())
}

pub(super) fn close_forwarding(socket: &mut Socket) -> io::Result<()> {
    let table = "filter";
    for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
        for chain in [DOCKER_CHAIN, "FORWARD"] {
            let handles = our_rules(socket, family, table, chain)?;
            if handles.is_empty() {
                continue;
            }
            let mut batch = Batch::new(family, table);
            for handle in handles {
                batch.delete_rule(chain, handle);
            }
            batch.commit(socket)?;
        }
    }
    Ok(())
}

/// The handles of our rules in a chain of another program.
fn our_rules(
    socket: &mut Socket,
    family: NetfilterProtoFamily,
    table: &str,
    chain: &str,
) -> io::Result<Vec<u64>> {
    let request = message(
        family,
        NfTablesMessage::GetRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(table.to_owned()),
                RuleAttribute::Chain(chain.to_owned()),
            ],
        }),
    );
    let comment = batch::to_comment(OPENING_COMMENT);
    Ok(socket
        .list(request)?
        .into_iter()
        .filter_map(|answer: NetfilterMessage| match answer.inner {
            NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(rule)) => {
                Some(rule.attributes)
            }
            _ => None,
        })
        .filter(|attributes| {
            // The kernel passes over names that it does not know, and then lists everything.
            attributes.contains(&RuleAttribute::Table(table.to_owned()))
                && attributes.contains(&RuleAttribute::Chain(chain.to_owned()))
                && attributes.contains(&RuleAttribute::UserData(comment.clone()))
        })
        .filter_map(|attributes| {
            attributes
                .into_iter()
                .find_map(|attribute| match attribute {
                    RuleAttribute::Handle(handle) => Some(handle),
                    _ => None,
                })
        })
        .collect())
}
