// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The packet filter's part: one table for all machines of this host, spoken to the kernel without the program `nft`.
//!
//! Its rules know interfaces by the start of their names, so a machine that comes or goes changes none of them. What a machine
//! may send ([`guard`]) and the ports that it publishes ([`crate::publish`]) are in tables of the machine's own.

mod batch;
mod guard;
mod own_table;
mod rule;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook, HookNumber, InetHookNumber, NfTablesMessage, RuleAttribute,
    RuleMessage, TableAttribute, TableFlags, TableMessage,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

pub(crate) use batch::{Batch, Place};
pub(crate) use guard::guard;
pub(crate) use own_table::OwnTable;
use rule::{
    CT_ESTABLISHED_OR_RELATED, CT_IS_DNAT, Direction, Is, connection_state_is,
    connection_status_is, drop, interface_is_in_group, interface_starts_with, masquerade,
    source_is,
};
pub(crate) use rule::{
    Rule, accept, destination_is, destination_is_local, family_is, jump, port_is, redirect_to,
};

use crate::error::NetworkError;
use crate::netlink::Socket;

/// How the names of all routed taps start.
pub(crate) const PREFIX: &str = "coracle";

/// The group of those routed taps whose machines are not kept from each other. Any number that nobody else is likely to take.
pub(crate) const SOCIABLE: u32 = 0xc07a_c1e0;

/// The table for all machines.
const TABLE: &str = "coracle";

/// Which rules the table holds: another number replaces them.
const COMMENT: &str = "coracle-network rules 2";

/// Marks our rules in other programs' chains.
const OPENING_COMMENT: &str = "coracle";

const PREROUTING: &str = "prerouting";
const FORWARD: &str = "forward";
const POSTROUTING: &str = "postrouting";

/// Before connections are tracked, so that what is dropped leaves no trace.
const PRIORITY_RAW: i32 = -300;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SRCNAT: i32 = 100;

/// Makes sure of the table, and that no other firewall drops what is forwarded for machines.
pub(crate) fn ensure(socket: &mut Socket) -> Result<(), NetworkError> {
    let present = comment_of_table(socket, TABLE)
        .map_err(|source| refused("look for table coracle", source))?;
    if present.as_deref() != Some(COMMENT) {
        let mut batch = Batch::new(NetfilterProtoFamily::Inet, TABLE);
        if present.is_some() {
            batch.delete_table();
        }
        add_rules(&mut batch);
        batch
            .commit(socket)
            .map_err(|source| refused("make table coracle", source))?;
    }
    open_forwarding(socket)
        .map_err(|source| refused("let other firewalls accept what is forwarded", source))
}

/// Removes the table, and our rules in other programs' chains.
pub(crate) fn remove(socket: &mut Socket) -> Result<(), NetworkError> {
    delete_table(socket, NetfilterProtoFamily::Inet, TABLE)?;
    close_forwarding(socket).map_err(|source| refused("remove rules from other firewalls", source))
}

/// Removes a table of ours unless it is gone.
fn delete_table(
    socket: &mut Socket,
    family: NetfilterProtoFamily,
    table: &str,
) -> Result<(), NetworkError> {
    let mut batch = Batch::new(family, table);
    batch.delete_table();
    match batch.commit(socket) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result.map_err(|source| refused("remove a table", source)),
    }
}

/// Whether the table for all machines is there.
pub(crate) fn is_present(socket: &mut Socket) -> io::Result<bool> {
    comment_of_table(socket, TABLE).map(|comment| comment.is_some())
}

pub(crate) fn refused(action: &str, source: io::Error) -> NetworkError {
    NetworkError::Firewall {
        action: action.to_owned(),
        source,
    }
}

/// The whole table.
fn add_rules(batch: &mut Batch) {
    use Direction::{In, Out};
    use Is::{Different, Equal};
    let from_guest = || interface_starts_with(In, Equal, PREFIX);
    let to_guest = || interface_starts_with(Out, Equal, PREFIX);
    let not_from_guest = || interface_starts_with(In, Different, PREFIX);
    let not_to_guest = || interface_starts_with(Out, Different, PREFIX);
    let loopback = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0));
    let place = |kind, hook, priority| Some(Place::inet(kind, hook, priority));

    batch
        .add_table(TableFlags::empty(), COMMENT)
        // What a guest may send is its own table's to say. That goes with the process that made the machine's network, and a tap
        // with the last that has it open: between the two this host's loopback interface must stay out of reach as well.
        .add_chain(
            PREROUTING,
            place("filter", InetHookNumber::PreRouting, PRIORITY_RAW),
        )
        .add_rule(
            PREROUTING,
            [from_guest(), destination_is(loopback, 8), drop()],
        )
        // From outside a guest is reached through published ports alone, though this host would route to it.
        .add_chain(
            FORWARD,
            place("filter", InetHookNumber::Forward, PRIORITY_FILTER),
        )
        // So it is from guests, but for those that are not kept apart.
        .add_rule(
            FORWARD,
            [
                to_guest(),
                from_guest(),
                interface_is_in_group(In, SOCIABLE),
                interface_is_in_group(Out, SOCIABLE),
                accept(),
            ],
        )
        .add_rule(
            FORWARD,
            [
                to_guest(),
                connection_state_is(CT_ESTABLISHED_OR_RELATED),
                accept(),
            ],
        )
        .add_rule(
            FORWARD,
            [to_guest(), connection_status_is(CT_IS_DNAT), accept()],
        )
        .add_rule(FORWARD, [to_guest(), drop()])
        .add_chain(
            POSTROUTING,
            place("nat", InetHookNumber::PostRouting, PRIORITY_SRCNAT),
        )
        // Guests have this host's address outside.
        .add_rule(POSTROUTING, [from_guest(), not_to_guest(), masquerade()])
        // A guest that asks for its own published port would drop packets from its own address.
        .add_rule(
            POSTROUTING,
            [
                from_guest(),
                to_guest(),
                connection_status_is(CT_IS_DNAT),
                masquerade(),
            ],
        )
        // This host's processes that ask for a published port on its loopback interface: no guest could answer them.
        .add_rule(
            POSTROUTING,
            [
                not_from_guest(),
                to_guest(),
                source_is(loopback, 8),
                masquerade(),
            ],
        )
        .add_rule(
            POSTROUTING,
            [
                not_from_guest(),
                to_guest(),
                source_is(Ipv6Addr::LOCALHOST.into(), 128),
                masquerade(),
            ],
        );
}

fn message(family: NetfilterProtoFamily, inner: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

/// The comment of a table that exists; empty where it has none.
fn comment_of_table(socket: &mut Socket, table: &str) -> io::Result<Option<String>> {
    let request = message(
        NetfilterProtoFamily::Inet,
        NfTablesMessage::GetTable(TableMessage {
            attributes: vec![TableAttribute::Name(table.to_owned())],
        }),
    );
    let answer: NetfilterMessage = match socket.get(request) {
        Ok(answer) => answer,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(found)) = answer.inner else {
        return Ok(None);
    };
    let comment = found
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TableAttribute::UserData(data) => Some(data.clone()),
            _ => None,
        });
    Ok(Some(match comment {
        Some(data) if data == batch::to_comment(COMMENT) => COMMENT.to_owned(),
        _ => String::new(),
    }))
}

/// A chain of another program that drops what it is not told to accept, and where to tell it.
struct DroppingChain {
    family: NetfilterProtoFamily,
    table: String,
    chain: String,
}

impl DroppingChain {
    /// Whether it is one that the programs `iptables` and `ip6tables` show, and that others add rules to.
    fn is_of_iptables(&self) -> bool {
        matches!(
            self.family,
            NetfilterProtoFamily::IPv4 | NetfilterProtoFamily::IPv6
        ) && self.table == "filter"
            && self.chain == "FORWARD"
    }
}

/// Where Docker has users put their rules; its own chains are made anew at any time.
const DOCKER_CHAIN: &str = "DOCKER-USER";

/// Accepting in our own table does not help against a chain that drops: Docker's. There, rules of ours go first.
fn open_forwarding(socket: &mut Socket) -> io::Result<()> {
    let (dropping, docker) = dropping_chains(socket)?;
    for place in dropping {
        if !place.is_of_iptables() {
            tracing::warn!(
                "chain {} of nftables table {} drops what is forwarded: guests reach nothing unless it accepts \
                 interfaces {PREFIX}*",
                place.chain,
                place.table
            );
            continue;
        }
        let chain = if docker.contains(&place.family) {
            DOCKER_CHAIN
        } else {
            &place.chain
        };
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

fn close_forwarding(socket: &mut Socket) -> io::Result<()> {
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

/// Chains that drop by policy at the forward hook, and the families in which Docker has its chain.
fn dropping_chains(
    socket: &mut Socket,
) -> io::Result<(Vec<DroppingChain>, Vec<NetfilterProtoFamily>)> {
    const NF_DROP: u32 = 0;
    let request = message(
        NetfilterProtoFamily::Unspec,
        NfTablesMessage::GetChain(ChainMessage {
            attributes: Vec::new(),
        }),
    );
    let mut dropping = Vec::new();
    let mut docker = Vec::new();
    for answer in socket.list(request)? {
        let NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(found)) = answer.inner else {
            continue;
        };
        let mut place = DroppingChain {
            family: answer.header.family,
            table: String::new(),
            chain: String::new(),
        };
        let mut drops = false;
        let mut is_forward = false;
        for attribute in found.attributes {
            match attribute {
                ChainAttribute::Table(name) => place.table = name,
                ChainAttribute::Name(name) => place.chain = name,
                ChainAttribute::Policy(policy) => drops = policy == NF_DROP,
                ChainAttribute::Hook(hook) => {
                    is_forward =
                        hook.contains(&Hook::Number(HookNumber::Inet(InetHookNumber::Forward)));
                }
                _ => {}
            }
        }
        let is_ip = matches!(
            place.family,
            NetfilterProtoFamily::IPv4 | NetfilterProtoFamily::IPv6 | NetfilterProtoFamily::Inet
        );
        if place.chain == DOCKER_CHAIN && place.table == "filter" {
            docker.push(place.family);
        }
        if drops && is_forward && is_ip {
            dropping.push(place);
        }
    }
    Ok((dropping, docker))
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
