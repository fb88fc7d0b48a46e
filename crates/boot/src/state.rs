// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The state of the first vCPU, as plain data that any hypervisor's interface can be filled from.

/// A segment register with its hidden part (Intel SDM volume 3, 3.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Linear address of its first byte.
    pub base: u64,
    /// Offset of its last byte, in bytes.
    pub limit: u32,
    /// The visible part.
    pub selector: u16,
    /// The four bits of its type.
    pub kind: u8,
    /// Whether it holds code or data (otherwise it is a system segment).
    pub code_or_data: bool,
    /// Whether its default operand size is 32 bits.
    pub big: bool,
    /// Whether its descriptor counted its limit in pages.
    pub granular: bool,
}

impl Segment {
    const fn flat(selector: u16, kind: u8) -> Self {
        Self {
            base: 0,
            limit: u32::MAX,
            selector,
            kind,
            code_or_data: true,
            big: true,
            granular: true,
        }
    }
}

/// The registers of the first vCPU when it starts; what is not named is as after a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartState {
    /// The first instruction.
    pub rip: u64,
    /// Guest-physical address of the start information.
    pub rbx: u64,
    /// Flags: none but the one that is always set.
    pub rflags: u64,
    /// Control register 0: protected mode, no paging.
    pub cr0: u64,
    /// Control register 4.
    pub cr4: u64,
    /// The code segment.
    pub cs: Segment,
    /// The data, stack and extra segments: DS, ES, FS, GS and SS.
    pub data: Segment,
    /// The task register.
    pub tr: Segment,
}

impl StartState {
    /// The state that Xen's x86/HVM direct boot ABI asks for: protected mode of 32 bits with flat segments.
    pub(crate) const fn pvh(entry: u32, start_info: u64) -> Self {
        // Types from Intel SDM volume 3, tables 3-1 and 3-2.
        const CODE_EXECUTE_READ_ACCESSED: u8 = 0xb;
        const DATA_READ_WRITE_ACCESSED: u8 = 0x3;
        const TASK_STATE_32_BUSY: u8 = 0xb;
        Self {
            rip: entry as u64,
            rbx: start_info,
            rflags: 0x2,
            cr0: 0x1,
            cr4: 0,
            cs: Segment::flat(0x8, CODE_EXECUTE_READ_ACCESSED),
            data: Segment::flat(0x10, DATA_READ_WRITE_ACCESSED),
            tr: Segment {
                base: 0,
                limit: 0x67,
                selector: 0x18,
                kind: TASK_STATE_32_BUSY,
                code_or_data: false,
                big: false,
                granular: false,
            },
        }
    }
}
