// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A transaction of nf_tables: all of it happens at once, or nothing.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NetlinkMessage};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook, HookNumber, InetHookNumber, ListAttribute, NfTablesMessage,
    RuleAttribute, RuleMessage, TableAttribute, TableFlags, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::rule::Rule;
use crate::netlink::Socket;

/// The subsystem that a batch is for.
const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// Comments stand in the user data under this type, NUL-terminated: of tables, chains and rules alike.
const COMMENT: u8 = 0;

/// Where a chain hangs.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) kind: &'static str,
    pub(crate) hook: HookNumber,
    /// The interface, for hooks that are an interface's own.
    pub(crate) device: Option<&'a str>,
    pub(crate) priority: i32,
}

impl Place<'_> {
    /// At a hook of the IP layer.
    pub(crate) fn inet(kind: &'static str, hook: InetHookNumber, priority: i32) -> Self {
        Self {
            kind,
            hook: hook.into(),
            device: None,
            priority,
        }
    }
}

/// A table of a family that rules are added to.
pub(crate) struct Batch {
    messages: Vec<NetlinkMessage<NetfilterMessage>>,
    family: NetfilterProtoFamily,
    table: String,
}

impl Batch {
    pub(crate) fn new(family: NetfilterProtoFamily, table: &str) -> Self {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFNL_SUBSYS_NFTABLES);
        Self {
            messages: vec![NetlinkMessage::from(NetfilterMessage::new(
                header,
                ControlMessage::BatchBegin,
            ))],
            family,
            table: table.to_owned(),
        }
    }

    fn push(&mut self, message: NfTablesMessage, flags: u16) {
        let header = NetfilterHeader::new(self.family, 0, 0);
        let mut message = NetlinkMessage::from(NetfilterMessage::new(header, message));
        message.header.flags = flags | NLM_F_ACK;
        self.messages.push(message);
    }

    /// Makes the table. With [`TableFlags::Owner`] the kernel removes it together with the socket that made it.
    pub(crate) fn add_table(&mut self, flags: TableFlags, comment: &str) -> &mut Self {
        let attributes = vec![
            TableAttribute::Name(self.table.clone()),
            TableAttribute::Flags(flags),
            TableAttribute::UserData(to_comment(comment)),
        ];
        self.push(
            NfTablesMessage::NewTable(TableMessage { attributes }),
            NLM_F_CREATE | NLM_F_EXCL,
        );
        self
    }

    /// Removes the table, which must exist.
    pub(crate) fn delete_table(&mut self) -> &mut Self {
        let attributes = vec![TableAttribute::Name(self.table.clone())];
        self.push(NfTablesMessage::DeleteTable(TableMessage { attributes }), 0);
        self
    }

    /// Makes a chain, at a hook or to be jumped to.
    pub(crate) fn add_chain(&mut self, name: &str, place: Option<Place<'_>>) -> &mut Self {
        let mut attributes = vec![
            ChainAttribute::Table(self.table.clone()),
            ChainAttribute::Name(name.to_owned()),
        ];
        if let Some(place) = place {
            attributes.push(ChainAttribute::Type(place.kind.to_owned()));
            let mut hook = vec![
                Hook::Number(place.hook),
                Hook::Priority(place.priority.cast_unsigned()),
            ];
            hook.extend(
                place
                    .device
                    .map(|name| Hook::NetDeviceName(name.to_owned())),
            );
            attributes.push(ChainAttribute::Hook(hook));
        }
        self.push(
            NfTablesMessage::NewChain(ChainMessage { attributes }),
            NLM_F_CREATE | NLM_F_EXCL,
        );
        self
    }

    /// Adds a rule at the end of a chain.
    pub(crate) fn add_rule(
        &mut self,
        chain: &str,
        rule: impl IntoIterator<Item = Rule>,
    ) -> &mut Self {
        let rule = self.rule(chain, rule, None);
        self.push(NfTablesMessage::NewRule(rule), NLM_F_CREATE | NLM_F_APPEND);
        self
    }

    /// Adds a rule at the head of a chain that is somebody else's, so it says whose it is.
    pub(crate) fn insert_rule(
        &mut self,
        chain: &str,
        rule: impl IntoIterator<Item = Rule>,
        comment: &str,
    ) -> &mut Self {
        let rule = self.rule(chain, rule, Some(comment));
        self.push(NfTablesMessage::NewRule(rule), NLM_F_CREATE);
        self
    }

    /// Removes one rule.
    pub(crate) fn delete_rule(&mut self, chain: &str, handle: u64) -> &mut Self {
        let attributes = vec![
            RuleAttribute::Table(self.table.clone()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Handle(handle),
        ];
        self.push(NfTablesMessage::DeleteRule(RuleMessage { attributes }), 0);
        self
    }

    fn rule(
        &self,
        chain: &str,
        rule: impl IntoIterator<Item = Rule>,
        comment: Option<&str>,
    ) -> RuleMessage {
        let expressions = rule
            .into_iter()
            .flatten()
            .map(ListAttribute::from)
            .collect();
        let mut attributes = vec![
            RuleAttribute::Table(self.table.clone()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(expressions),
        ];
        attributes.extend(comment.map(|comment| RuleAttribute::UserData(to_comment(comment))));
        RuleMessage { attributes }
    }

    /// Does it.
    pub(crate) fn commit(mut self, socket: &mut Socket) -> io::Result<()> {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFNL_SUBSYS_NFTABLES);
        self.messages
            .push(NetlinkMessage::from(NetfilterMessage::new(
                header,
                ControlMessage::BatchEnd,
            )));
        socket.batch(self.messages)
    }
}

/// User data that `nft` shows as a comment.
pub(crate) fn to_comment(comment: &str) -> Vec<u8> {
    // All of ours are short literals.
    let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    let mut data = vec![COMMENT, length];
    data.extend(comment.bytes().take(usize::from(length) - 1));
    data.push(0);
    data
}
