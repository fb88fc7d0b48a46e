// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which devices a container may use: a small eBPF program on its cgroup, the only way that cgroup v2 has.
//!
//! A container that may make nodes could otherwise make one for any device that the guest's kernel knows. The program
//! tries the rules from the last to the first, and the first that fits decides; a device that none fits is denied.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use crate::spec::DeviceRule;

/// Devices that every container may use: type, major and minor number, where `None` stands for all.
const DEFAULTS: [(char, Option<u32>, Option<u32>, &str); 11] = [
    // Any node may be made; what matters is which can be opened.
    ('c', None, None, "m"),
    ('b', None, None, "m"),
    ('c', Some(1), Some(3), "rwm"), // null
    ('c', Some(1), Some(5), "rwm"), // zero
    ('c', Some(1), Some(7), "rwm"), // full
    ('c', Some(1), Some(8), "rwm"), // random
    ('c', Some(1), Some(9), "rwm"), // urandom
    ('c', Some(5), Some(0), "rwm"), // tty
    ('c', Some(5), Some(1), "rwm"), // console
    ('c', Some(5), Some(2), "rwm"), // ptmx
    ('c', Some(136), None, "rwm"),  // pts/*
];

// `struct bpf_cgroup_dev_ctx` of linux/bpf.h.
const CONTEXT_ACCESS: i16 = 0;
const CONTEXT_MAJOR: i16 = 4;
const CONTEXT_MINOR: i16 = 8;
const TYPE_BLOCK: i32 = 1;
const TYPE_CHARACTER: i32 = 2;
const ACCESS_MAKE: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
const ACCESS_ALL: i32 = ACCESS_MAKE | ACCESS_READ | ACCESS_WRITE;

// Opcodes: class, operation and source as linux/bpf_common.h and linux/bpf.h combine them.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_IF_EQUAL: u8 = 0x16;
const JUMP_IF_NOT_EQUAL: u8 = 0x56;
const JUMP_IF_REGISTER_NOT_EQUAL: u8 = 0x5e;
const EXIT: u8 = 0x95;

// Registers.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    fn new(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Self {
        Self {
            code,
            registers: from << 4 | to,
            offset,
            immediate,
        }
    }
}

/// A rule in the kernel's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// `None` for both types.
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

impl Rule {
    fn fits_everything(&self) -> bool {
        self.kind.is_none()
            && self.major.is_none()
            && self.minor.is_none()
            && self.access == ACCESS_ALL
    }
}

/// Puts a filter on the cgroup at `path` that lets its processes use what every container may, changed by `rules`.
///
/// # Errors
///
/// The kernel has no eBPF for cgroups.
pub(super) fn attach(path: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroup = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let program = load(&compile(&all_rules(rules)))?;
    attach_to(&cgroup, &program)
}

/// The rules that hold, the deciding ones last: an engine's "deny all" comes first and does not undo the defaults.
fn all_rules(rules: &[DeviceRule]) -> Vec<Rule> {
    let number = |number: Option<i64>| {
        number
            .and_then(|number| i32::try_from(number).ok())
            .filter(|number| *number >= 0)
    };
    let asked = rules.iter().map(|rule| Rule {
        allow: rule.allow,
        kind: match rule.kind.as_deref() {
            Some("b") => Some(TYPE_BLOCK),
            Some("c") => Some(TYPE_CHARACTER),
            _ => None,
        },
        major: number(rule.major),
        minor: number(rule.minor),
        access: access(rule.access.as_deref().unwrap_or("rwm")),
    });
    let (everything, particular): (Vec<_>, Vec<_>) =
        asked.partition(|rule| rule.kind.is_none() && rule.major.is_none() && rule.minor.is_none());
    let defaults = DEFAULTS.iter().map(|(kind, major, minor, allowed)| Rule {
        allow: true,
        kind: Some(if *kind == 'b' {
            TYPE_BLOCK
        } else {
            TYPE_CHARACTER
        }),
        major: major.map(u32::cast_signed),
        minor: minor.map(u32::cast_signed),
        access: access(allowed),
    });
    everything
        .into_iter()
        .chain(defaults)
        .chain(particular)
        .collect()
}

fn access(letters: &str) -> i32 {
    letters.chars().fold(0, |access, letter| {
        access
            | match letter {
                'm' => ACCESS_MAKE,
                'r' => ACCESS_READ,
                'w' => ACCESS_WRITE,
                _ => 0,
            }
    })
}

/// Writes the program: what is asked for into registers, then each rule, the last one first, then a denial.
fn compile(rules: &[Rule]) -> Vec<Instruction> {
    let insn = Instruction::new;
    let mut program = vec![
        insn(LOAD_WORD, TYPE, CONTEXT, CONTEXT_ACCESS, 0),
        insn(MOVE_REGISTER, ACCESS, TYPE, 0, 0),
        insn(AND, TYPE, 0, 0, 0xffff),
        insn(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        insn(LOAD_WORD, MAJOR, CONTEXT, CONTEXT_MAJOR, 0),
        insn(LOAD_WORD, MINOR, CONTEXT, CONTEXT_MINOR, 0),
    ];
    for rule in rules.iter().rev() {
        append(&mut program, rule);
        if rule.fits_everything() {
            // The kernel refuses a program with instructions that cannot be reached.
            return program;
        }
    }
    program.extend([insn(MOVE, RESULT, 0, 0, 0), insn(EXIT, 0, 0, 0, 0)]);
    program
}

fn append(program: &mut Vec<Instruction>, rule: &Rule) {
    let insn = Instruction::new;
    // Each of these leaves the rule if it does not fit; where to is filled in below.
    let mut tests = Vec::new();
    for (register, value) in [(TYPE, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(value) = value {
            tests.push(insn(JUMP_IF_NOT_EQUAL, register, 0, 0, value));
        }
    }
    if rule.access != ACCESS_ALL {
        tests.push(insn(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0));
        tests.push(insn(AND, SCRATCH, 0, 0, rule.access));
        tests.push(if rule.allow {
            // It allows what is asked for only if it names all of it,
            insn(JUMP_IF_REGISTER_NOT_EQUAL, SCRATCH, ACCESS, 0, 0)
        } else {
            // and denies what is asked for if it names any of it.
            insn(JUMP_IF_EQUAL, SCRATCH, 0, 0, 0)
        });
    }
    let decision = [
        insn(MOVE, RESULT, 0, 0, i32::from(rule.allow)),
        insn(EXIT, 0, 0, 0, 0),
    ];
    let length = tests.len() + decision.len();
    for (position, mut test) in tests.into_iter().enumerate() {
        if matches!(
            test.code,
            JUMP_IF_NOT_EQUAL | JUMP_IF_EQUAL | JUMP_IF_REGISTER_NOT_EQUAL
        ) {
            // At most eight instructions: it always fits.
            test.offset = i16::try_from(length - position - 1).unwrap_or(i16::MAX);
        }
        program.push(test);
    }
    program.extend(decision);
}

/// `BPF_PROG_LOAD`.
fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_int = 5;
    const TYPE_CGROUP_DEVICE: u32 = 15;

    #[repr(C)]
    struct Attributes {
        program_type: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
    }
    let attributes = Attributes {
        program_type: TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the attributes are those of this command, and point to instructions and a string that outlive the call.
    let fd = unsafe { bpf(PROG_LOAD, &attributes)? };
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `BPF_PROG_ATTACH`.
fn attach_to(cgroup: &OwnedFd, program: &OwnedFd) -> io::Result<()> {
    const PROG_ATTACH: libc::c_int = 8;
    const ATTACH_CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 1 << 1;

    #[repr(C)]
    struct Attributes {
        target: i32,
        program: i32,
        attach_type: u32,
        flags: u32,
    }
    let attributes = Attributes {
        target: cgroup.as_raw_fd(),
        program: program.as_raw_fd(),
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the attributes are those of this command and hold no pointers.
    unsafe { bpf(PROG_ATTACH, &attributes).map(drop) }
}

/// `bpf(2)`.
///
/// # Safety
///
/// `attributes` are those of `command`, and what they point to outlives the call.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads no more than the size given; the caller answers for the rest.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// Runs a program as the kernel would, on a request for `access` to a device.
    fn run(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let mut registers = [0_i32; 11];
        let mut counter = 0_usize;
        loop {
            let insn = program[counter];
            let to = usize::from(insn.registers & 15);
            let from = usize::from(insn.registers >> 4);
            counter += 1;
            let jump = match insn.code {
                EXIT => return registers[0] != 0,
                JUMP_IF_EQUAL => registers[to] == insn.immediate,
                JUMP_IF_NOT_EQUAL => registers[to] != insn.immediate,
                JUMP_IF_REGISTER_NOT_EQUAL => registers[to] != registers[from],
                LOAD_WORD => {
                    registers[to] = match insn.offset {
                        CONTEXT_ACCESS => access << 16 | kind,
                        CONTEXT_MAJOR => major,
                        _ => minor,
                    };
                    false
                }
                MOVE => {
                    registers[to] = insn.immediate;
                    false
                }
                MOVE_REGISTER => {
                    registers[to] = registers[from];
                    false
                }
                AND => {
                    registers[to] &= insn.immediate;
                    false
                }
                SHIFT_RIGHT => {
                    registers[to] >>= insn.immediate;
                    false
                }
                code => panic!("opcode {code:#x}"),
            };
            if jump {
                counter += usize::try_from(insn.offset).unwrap();
            }
        }
    }

    fn rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> DeviceRule {
        DeviceRule {
            allow,
            kind: Some(kind.to_owned()),
            major: Some(major),
            minor: Some(minor),
            access: Some(access.to_owned()),
        }
    }

    fn allowed(rules: &[DeviceRule], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        run(&compile(&all_rules(rules)), kind, access, major, minor)
    }

    #[rstest]
    #[case::null(TYPE_CHARACTER, ACCESS_READ | ACCESS_WRITE, 1, 3, true)]
    #[case::terminal(TYPE_CHARACTER, ACCESS_WRITE, 136, 7, true)]
    #[case::memory(TYPE_CHARACTER, ACCESS_READ, 1, 1, false)]
    #[case::disk(TYPE_BLOCK, ACCESS_READ, 254, 0, false)]
    #[case::node_of_disk(TYPE_BLOCK, ACCESS_MAKE, 254, 0, true)]
    #[case::node_and_read_of_disk(TYPE_BLOCK, ACCESS_MAKE | ACCESS_READ, 254, 0, false)]
    fn without_rules_the_defaults_hold(
        #[case] kind: i32,
        #[case] access: i32,
        #[case] major: i32,
        #[case] minor: i32,
        #[case] expected: bool,
    ) {
        assert_eq!(allowed(&[], kind, access, major, minor), expected);
    }

    #[test]
    fn denial_of_everything_leaves_the_defaults() {
        let rules = [rule(false, "a", -1, -1, "rwm")];

        assert!(allowed(&rules, TYPE_CHARACTER, ACCESS_READ, 1, 3));
        assert!(!allowed(&rules, TYPE_CHARACTER, ACCESS_READ, 10, 229));
    }

    #[test]
    fn nothing_follows_a_rule_for_everything() {
        let program = compile(&all_rules(&[rule(false, "a", -1, -1, "rwm")]));

        let exits = program.iter().filter(|insn| insn.code == EXIT).count();
        assert_eq!(exits, DEFAULTS.len() + 1);
    }

    #[test]
    fn device_of_the_spec_is_allowed_as_far_as_it_says() {
        let rules = [
            rule(false, "a", -1, -1, "rwm"),
            rule(true, "c", 10, 229, "r"),
        ];

        assert!(allowed(&rules, TYPE_CHARACTER, ACCESS_READ, 10, 229));
        assert!(!allowed(
            &rules,
            TYPE_CHARACTER,
            ACCESS_READ | ACCESS_WRITE,
            10,
            229
        ));
        assert!(!allowed(&rules, TYPE_CHARACTER, ACCESS_READ, 10, 228));
        assert!(!allowed(&rules, TYPE_BLOCK, ACCESS_READ, 10, 229));
    }

    #[test]
    fn later_rule_decides() {
        let rules = [rule(true, "b", 8, -1, "rwm"), rule(false, "b", 8, 1, "w")];

        assert!(allowed(&rules, TYPE_BLOCK, ACCESS_READ, 8, 1));
        assert!(!allowed(
            &rules,
            TYPE_BLOCK,
            ACCESS_READ | ACCESS_WRITE,
            8,
            1
        ));
        assert!(allowed(&rules, TYPE_BLOCK, ACCESS_WRITE, 8, 2));
    }

    #[test]
    fn privileged_container_may_use_everything() {
        let rules = [rule(true, "a", -1, -1, "rwm")];

        assert!(allowed(&rules, TYPE_BLOCK, ACCESS_ALL, 254, 0));
    }

    proptest! {
        #[test]
        fn program_ends_whatever_the_rules(
            rules in proptest::collection::vec(
                (any::<bool>(), "[abc]", -1_i64..300, -1_i64..300, "r?w?m?"),
                0..20,
            ),
            (kind, access) in (1_i32..3, 1_i32..8),
            (major, minor) in (0_i32..300, 0_i32..300),
        ) {
            let rules: Vec<_> = rules
                .iter()
                .map(|(allow, kind, major, minor, access)| rule(*allow, kind, *major, *minor, access))
                .collect();

            allowed(&rules, kind, access, major, minor);
        }
    }
}
