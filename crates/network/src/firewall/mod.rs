// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The packet filter's part: one table for all machines of this host, spoken to the kernel without the program `nft`.
//!
//! Its rules know interfaces by the start of their names, so a machine that comes or goes changes none of them. What a machine
//! may send ([`guard`]) and the ports that it publishes ([`crate::publish`]) are in tables of the machine's own.

mod batch;
mod guard;
mod others;
mod own_table;
mod rule;
mod strangers;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_netfilter::nftables::{
    InetHookNumber, NfTablesMessage, TableAttribute, TableFlags, TableMessage,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

pub(crate) use batch::{Batch, Place};
pub(crate) use guard::{Side, guard};
pub(crate) use others::forwarders;
pub(crate) use own_table::OwnTable;
use rule::{
    CT_ESTABLISHED_OR_RELATED, CT_IS_DNAT, Direction, Is, connection_state_is,
    connection_status_is, drop, interface_is_in_group, interface_starts_with, masquerade,
    source_is,
};
pub(crate) use rule::{
    Rule, accept, destination_is, destination_is_local, family_is, jump, port_is, redirect_to,
};
pub(crate) use strangers::{keep_strangers_out, let_strangers_in};

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
    others::open_forwarding(socket)
        .map_err(|source| refused("let other firewalls accept what is forwarded", source))
}

/// Removes the table, and our rules in other programs' chains.
pub(crate) fn remove(socket: &mut Socket) -> Result<(), NetworkError> {
    delete_table(socket, NetfilterProtoFamily::Inet, TABLE)?;
    others::close_forwarding(socket)
        .map_err(|source| refused("remove rules from other firewalls", source))
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
    has_table(socket, TABLE)
}

fn has_table(socket: &mut Socket, table: &str) -> io::Result<bool> {
    comment_of_table(socket, table).map(|comment| comment.is_some())
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
