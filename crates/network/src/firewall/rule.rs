// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The few expressions of nf_tables that our rules are made of.
//!
//! A rule is a list of expressions: one loads a value into a register, the next compares it and ends the rule where it
//! differs, the last decides. <https://wiki.nftables.org/> describes them; numbers are those of `linux/netfilter/nf_tables.h`.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, Expressions, Immediate, Meta, MetaKey, Operator, Payload,
    Register, Verdict, VerdictAttribute,
};

use crate::port::Protocol;

/// One rule's expressions.
pub(crate) type Rule = Vec<Expressions>;

/// Where values are loaded to.
const REGISTER: Register = Register::Reg1;
const SECOND_REGISTER: Register = Register::Reg2;

// Header bases of payload expressions.
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

// Verdicts of the netfilter core.
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

// States and statuses of a connection, as bits.
pub(crate) const CT_ESTABLISHED_OR_RELATED: u32 = 2 | 4;
pub(crate) const CT_IS_DNAT: u32 = 1 << 5;

/// Which interface a packet came in on, or goes out of.
#[derive(Clone, Copy)]
pub(crate) enum Direction {
    In,
    Out,
}

/// Whether a comparison is to hold or to fail.
#[derive(Clone, Copy)]
pub(crate) enum Is {
    Equal,
    Different,
}

impl From<Is> for Operator {
    fn from(is: Is) -> Self {
        match is {
            Is::Equal => Self::Equal,
            Is::Different => Self::NotEqual,
        }
    }
}

fn compare(operator: Operator, value: &[u8]) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(REGISTER),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value.to_vec())),
    ])
}

fn load_meta(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(REGISTER)])
}

fn load_payload(base: u32, offset: u32, length: u32) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(REGISTER),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

/// An expression that the library has no type for. Numbers in it are big-endian.
fn other(name: &str, numbers: &[(u16, u32)]) -> Expressions {
    Expressions::Other {
        expression_type: name.to_owned(),
        attributes: numbers
            .iter()
            .map(|(kind, number)| DefaultNla::new(*kind, number.to_be_bytes().to_vec()))
            .collect(),
    }
}

fn load_interface(direction: Direction) -> Expressions {
    load_meta(match direction {
        Direction::In => MetaKey::Iifname,
        Direction::Out => MetaKey::Oifname,
    })
}

/// The interface's name starts so.
pub(crate) fn interface_starts_with(direction: Direction, is: Is, prefix: &str) -> Rule {
    // A comparison shorter than the name leaves the rest open.
    vec![
        load_interface(direction),
        compare(is.into(), prefix.as_bytes()),
    ]
}

/// This is the interface's name.
pub(crate) fn interface_is(direction: Direction, name: &str) -> Rule {
    // With the zeroes that follow it to the end.
    let mut padded = name.as_bytes().to_vec();
    padded.resize(libc::IFNAMSIZ, 0);
    vec![load_interface(direction), compare(Operator::Equal, &padded)]
}

/// The interface that the packet came in on, or goes out of, is of this group.
pub(crate) fn interface_is_in_group(direction: Direction, group: u32) -> Rule {
    let key = match direction {
        Direction::In => MetaKey::Iifgroup,
        Direction::Out => MetaKey::Oifgroup,
    };
    vec![
        load_meta(key),
        compare(Operator::Equal, &group.to_ne_bytes()),
    ]
}

/// The packet is of IPv4, or of IPv6, and its source lies in this network.
pub(crate) fn source_is(address: IpAddr, prefix_length: u8) -> Rule {
    let mut rule = family_is(address.is_ipv4());
    rule.extend(address_is_at(12, 8, address, prefix_length));
    rule
}

/// The packet is of IPv4, or of IPv6, and its destination lies in this network.
pub(crate) fn destination_is(address: IpAddr, prefix_length: u8) -> Rule {
    let mut rule = family_is(address.is_ipv4());
    rule.extend(destination_is_in(address, prefix_length));
    rule
}

/// The packet, which is of the address's family, has this source.
pub(crate) fn source_of_packet_is(address: IpAddr) -> Rule {
    let length = if address.is_ipv4() { 32 } else { 128 };
    address_is_at(12, 8, address, length)
}

/// The destination of the packet, which is of the address's family, lies in this network.
pub(crate) fn destination_is_in(address: IpAddr, prefix_length: u8) -> Rule {
    address_is_at(16, 24, address, prefix_length)
}

/// An address of the IP header, at the first of these places for IPv4 and at the second for IPv6.
fn address_is_at(ipv4_offset: u32, ipv6_offset: u32, address: IpAddr, prefix_length: u8) -> Rule {
    let (offset, bytes) = match address {
        IpAddr::V4(address) => (ipv4_offset, address.octets().to_vec()),
        IpAddr::V6(address) => (ipv6_offset, address.octets().to_vec()),
    };
    let length = bytes.len() as u32;
    let mut rule = vec![load_payload(NETWORK_HEADER, offset, length)];
    if u32::from(prefix_length) < length * 8 {
        let mask = (0..length)
            .map(|byte| {
                let bits = u32::from(prefix_length).saturating_sub(byte * 8).min(8);
                // At most 8 bits: the shift leaves a byte.
                !(0xff_u32 >> bits) as u8
            })
            .collect();
        rule.push(Expressions::Bitwise(vec![
            Bitwise::SourceRegister(REGISTER),
            Bitwise::DestinationRegister(REGISTER),
            Bitwise::Length(length),
            Bitwise::Mask(DataAttribute::Value(mask)),
            Bitwise::Xor(DataAttribute::Value(vec![0; bytes.len()])),
        ]));
    }
    rule.push(compare(Operator::Equal, &bytes));
    rule
}

/// The packet says that it has this address (RFC 826, for Ethernet and IPv4).
pub(crate) fn arp_sender_is(address: Ipv4Addr) -> Rule {
    const SENDER: u32 = 14;
    vec![
        load_payload(NETWORK_HEADER, SENDER, 4),
        compare(Operator::Equal, &address.octets()),
    ]
}

/// The frame carries this protocol, by its number as an EtherType.
pub(crate) fn protocol_is(ether_type: u16) -> Rule {
    vec![
        load_meta(MetaKey::EtherTypeProtocol),
        compare(Operator::Equal, &ether_type.to_be_bytes()),
    ]
}

/// The packet is of IPv4, or of IPv6.
pub(crate) fn family_is(is_ipv4: bool) -> Rule {
    let family = if is_ipv4 {
        libc::NFPROTO_IPV4
    } else {
        libc::NFPROTO_IPV6
    };
    vec![
        load_meta(MetaKey::Nfproto),
        compare(Operator::Equal, &[family as u8]),
    ]
}

/// The packet's destination is one of the host's own addresses.
pub(crate) fn destination_is_local() -> Rule {
    const RESULT_ADDRESS_TYPE: u32 = 3;
    const OF_DESTINATION: u32 = 2;
    vec![
        other(
            "fib",
            &[
                (1, REGISTER.into()),
                (2, RESULT_ADDRESS_TYPE),
                (3, OF_DESTINATION),
            ],
        ),
        compare(Operator::Equal, &u32::from(libc::RTN_LOCAL).to_ne_bytes()),
    ]
}

/// The packet's connection is in one of these states.
pub(crate) fn connection_state_is(states: u32) -> Rule {
    const STATE: u32 = 0;
    connection_has(STATE, states)
}

/// The packet's connection has one of these marks of what was done to it.
pub(crate) fn connection_status_is(statuses: u32) -> Rule {
    const STATUS: u32 = 2;
    connection_has(STATUS, statuses)
}

fn connection_has(key: u32, bits: u32) -> Rule {
    vec![
        other("ct", &[(1, REGISTER.into()), (2, key)]),
        Expressions::Bitwise(vec![
            Bitwise::SourceRegister(REGISTER),
            Bitwise::DestinationRegister(REGISTER),
            Bitwise::Length(4),
            Bitwise::Mask(DataAttribute::Value(bits.to_ne_bytes().to_vec())),
            Bitwise::Xor(DataAttribute::Value(vec![0; 4])),
        ]),
        compare(Operator::NotEqual, &[0; 4]),
    ]
}

/// The packet is for one of these ports, both ends included.
pub(crate) fn port_is(protocol: Protocol, first: u16, last: u16) -> Rule {
    let mut rule = vec![
        load_meta(MetaKey::L4Proto),
        compare(Operator::Equal, &[protocol.number()]),
        load_payload(TRANSPORT_HEADER, 2, 2),
    ];
    if first == last {
        rule.push(compare(Operator::Equal, &first.to_be_bytes()));
    } else {
        rule.push(compare(Operator::GreatherThanEqual, &first.to_be_bytes()));
        rule.push(compare(Operator::LessThanEqual, &last.to_be_bytes()));
    }
    rule
}

/// The connection goes to this address instead, and to this port unless it is to keep its own.
pub(crate) fn redirect_to(address: IpAddr, port: Option<u16>) -> Rule {
    const DESTINATION: u32 = 1;
    let (family, bytes) = match address {
        IpAddr::V4(address) => (libc::NFPROTO_IPV4, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::NFPROTO_IPV6, address.octets().to_vec()),
    };
    let mut rule = vec![load(REGISTER, bytes)];
    let mut arguments = vec![
        (1, DESTINATION),
        (2, family.cast_unsigned()),
        (3, REGISTER.into()),
    ];
    if let Some(port) = port {
        rule.push(load(SECOND_REGISTER, port.to_be_bytes().to_vec()));
        arguments.push((5, SECOND_REGISTER.into()));
    }
    rule.push(other("nat", &arguments));
    rule
}

fn load(register: Register, value: Vec<u8>) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(register),
        Immediate::Data(DataAttribute::Value(value)),
    ])
}

/// The packet gets the address of the interface that it goes out of as its source.
pub(crate) fn masquerade() -> Rule {
    vec![other("masq", &[])]
}

pub(crate) fn accept() -> Rule {
    decide(vec![VerdictAttribute::Code(Verdict::Other(NF_ACCEPT))])
}

pub(crate) fn drop() -> Rule {
    decide(vec![VerdictAttribute::Code(Verdict::Other(NF_DROP))])
}

pub(crate) fn jump(chain: &str) -> Rule {
    decide(vec![
        VerdictAttribute::Code(Verdict::Jump),
        VerdictAttribute::Chain(chain.to_owned()),
    ])
}

fn decide(verdict: Vec<VerdictAttribute>) -> Rule {
    vec![Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(verdict)),
    ])]
}
