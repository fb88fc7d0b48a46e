// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The messages of the vhost-user protocol, as far as a front end needs them: a header, then integers in the host's
//! byte order, which is little-endian here.

/// Header: request, flags, length of the rest.
pub(super) const HEADER_LEN: usize = 12;
/// The longest answer to any request: a configuration space.
pub(super) const MAX_BODY: usize = 12 + MAX_CONFIG;
/// The most bytes of a configuration space in a message.
pub(super) const MAX_CONFIG: usize = 256;
/// The most regions in a memory table.
pub(super) const MAX_REGIONS: usize = 8;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// What a front end asks for: a number, and the name that the protocol has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    code: u32,
    pub(super) name: &'static str,
}

impl Request {
    pub(super) const GET_FEATURES: Self = Self::new(1, "GET_FEATURES");
    pub(super) const SET_FEATURES: Self = Self::new(2, "SET_FEATURES");
    pub(super) const SET_OWNER: Self = Self::new(3, "SET_OWNER");
    pub(super) const SET_MEM_TABLE: Self = Self::new(5, "SET_MEM_TABLE");
    pub(super) const SET_VRING_NUM: Self = Self::new(8, "SET_VRING_NUM");
    pub(super) const SET_VRING_ADDR: Self = Self::new(9, "SET_VRING_ADDR");
    pub(super) const SET_VRING_BASE: Self = Self::new(10, "SET_VRING_BASE");
    pub(super) const GET_VRING_BASE: Self = Self::new(11, "GET_VRING_BASE");
    pub(super) const SET_VRING_KICK: Self = Self::new(12, "SET_VRING_KICK");
    pub(super) const SET_VRING_CALL: Self = Self::new(13, "SET_VRING_CALL");
    pub(super) const GET_PROTOCOL_FEATURES: Self = Self::new(15, "GET_PROTOCOL_FEATURES");
    pub(super) const SET_PROTOCOL_FEATURES: Self = Self::new(16, "SET_PROTOCOL_FEATURES");
    pub(super) const GET_QUEUE_NUM: Self = Self::new(17, "GET_QUEUE_NUM");
    pub(super) const SET_VRING_ENABLE: Self = Self::new(18, "SET_VRING_ENABLE");
    pub(super) const GET_CONFIG: Self = Self::new(24, "GET_CONFIG");
    pub(super) const RESET_DEVICE: Self = Self::new(34, "RESET_DEVICE");

    const fn new(code: u32, name: &'static str) -> Self {
        Self { code, name }
    }
}

/// Protocol features.
pub(super) mod protocol {
    /// More queues than a device of the kind needs at least.
    pub(crate) const MQ: u64 = 1;
    /// Requests without an answer can be acknowledged.
    pub(crate) const REPLY_ACK: u64 = 1 << 3;
    /// The back end has the configuration space.
    pub(crate) const CONFIG: u64 = 1 << 9;
    /// The device can be reset as a whole.
    pub(crate) const RESET_DEVICE: u64 = 1 << 13;
}

/// The virtio feature bit that says "there are protocol features". It belongs to the connection: no guest sees it.
pub(super) const PROTOCOL_FEATURES: u64 = 1 << 30;

/// A request as it goes over the socket.
pub(super) fn encode(request: Request, need_reply: bool, body: &Body) -> Vec<u8> {
    let flags = VERSION | if need_reply { NEED_REPLY } else { 0 };
    let mut message = Body::default()
        .u32(request.code)
        .u32(flags)
        // Bodies are made here: a few hundred bytes.
        .u32(u32::try_from(body.0.len()).unwrap_or(u32::MAX));
    message.0.extend_from_slice(&body.0);
    message.0
}

/// The length of the rest of an answer to `request`, or nothing if it is none.
pub(super) fn answer_len(header: [u8; HEADER_LEN], request: Request) -> Option<usize> {
    let mut words = [0; 3];
    for (word, bytes) in words.iter_mut().zip(header.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    let [found, flags, len] = words;
    let len = usize::try_from(len).ok()?;
    let is_answer = found == request.code
        && flags & VERSION_MASK == VERSION
        && flags & REPLY != 0
        && len <= MAX_BODY;
    is_answer.then_some(len)
}

/// What a message is about.
#[derive(Debug, Default)]
pub(super) struct Body(Vec<u8>);

impl Body {
    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn zeroes(mut self, len: usize) -> Self {
        self.0.resize(self.0.len() + len, 0);
        self
    }
}
