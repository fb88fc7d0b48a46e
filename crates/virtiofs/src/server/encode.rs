// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From what a file system answers to the structures of the protocol.

use std::time::Duration;

use crate::filesystem::{Entry, Opened};
use crate::fuse::abi::{Attr, AttrOut, EntryOut, OpenOut};

pub(super) const fn entry_out(entry: &Entry) -> EntryOut {
    EntryOut {
        nodeid: entry.node.0,
        // Numbers of nodes are never used twice, so that they need no generation.
        generation: 0,
        entry_valid: entry.entry_timeout.as_secs(),
        attr_valid: entry.attribute_timeout.as_secs(),
        entry_valid_nsec: entry.entry_timeout.subsec_nanos(),
        attr_valid_nsec: entry.attribute_timeout.subsec_nanos(),
        attr: entry.attributes,
    }
}

pub(super) const fn attr_out((attr, timeout): (Attr, Duration)) -> AttrOut {
    AttrOut {
        attr_valid: timeout.as_secs(),
        attr_valid_nsec: timeout.subsec_nanos(),
        dummy: 0,
        attr,
    }
}

pub(super) const fn open_out(opened: Opened) -> OpenOut {
    OpenOut {
        fh: opened.handle.0,
        open_flags: opened.open_flags,
        padding: 0,
    }
}
