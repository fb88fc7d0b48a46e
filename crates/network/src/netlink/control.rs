// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Traffic control: what comes in on one link goes out of another, past this host's own stack.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::Socket;

impl Socket {
    /// Sends every frame that comes in on the link `from` out of the link `to`.
    pub(crate) fn redirect_ingress(&mut self, from: u32, to: u32) -> io::Result<()> {
        self.change(
            RouteNetlinkMessage::NewQueueDiscipline(ingress_queue(from)),
            NLM_F_CREATE | NLM_F_EXCL,
        )?;
        self.change(
            RouteNetlinkMessage::NewTrafficFilter(redirect_all(from, to)),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }
}

fn ingress_queue(index: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = TcHandle {
        major: 0xffff,
        minor: 0,
    };
    message.attributes = vec![TcAttribute::Kind("ingress".to_owned())];
    message
}

/// A u32 filter whose one key matches everything: `matchall` would say it plainer, but not every kernel has it.
fn redirect_all(from: u32, to: u32) -> TcMessage {
    const PRIORITY: u32 = 1;
    const ALL_PROTOCOLS: u16 = libc::ETH_P_ALL as u16;
    let mut action = TcAction::default();
    action.tab = 1;
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];

    let mut message = TcMessage::with_index(from.cast_signed());
    message.header.parent = TcHandle {
        major: 0xffff,
        minor: 0,
    };
    message.header.info = PRIORITY << 16 | u32::from(ALL_PROTOCOLS.to_be());
    message.attributes = vec![
        TcAttribute::Kind("u32".to_owned()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(selector)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]),
    ];
    message
}
