// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rules, compiled and run as the kernel would.

use proptest::option;
use proptest::prelude::*;
use rstest::rstest;

use super::program::*;
use super::rules::*;
use crate::spec::DeviceRule;

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

fn rule(
    allow: bool,
    kind: &str,
    major: Option<u32>,
    minor: Option<u32>,
    access: &str,
) -> DeviceRule {
    DeviceRule {
        allow,
        kind: Some(kind.to_owned()),
        major,
        minor,
        access: Some(access.to_owned()),
    }
}

fn allowed(rules: &[DeviceRule], kind: i32, access: i32, major: i32, minor: i32) -> bool {
    run(&compile(&all(rules)), kind, access, major, minor)
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
    let rules = [rule(false, "a", None, None, "rwm")];

    assert!(allowed(&rules, TYPE_CHARACTER, ACCESS_READ, 1, 3));
    assert!(!allowed(&rules, TYPE_CHARACTER, ACCESS_READ, 10, 229));
}

#[test]
fn nothing_follows_a_rule_for_everything() {
    let program = compile(&all(&[rule(false, "a", None, None, "rwm")]));

    let exits = program.iter().filter(|insn| insn.code == EXIT).count();
    assert_eq!(exits, DEFAULTS.len() + 1);
}

#[test]
fn device_of_the_spec_is_allowed_as_far_as_it_says() {
    let rules = [
        rule(false, "a", None, None, "rwm"),
        rule(true, "c", Some(10), Some(229), "r"),
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
    let rules = [
        rule(true, "b", Some(8), None, "rwm"),
        rule(false, "b", Some(8), Some(1), "w"),
    ];

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
fn rule_for_everything_undoes_all_before_it() {
    let rules = [
        rule(true, "c", Some(10), Some(229), "rwm"),
        rule(false, "a", None, None, "rwm"),
        rule(true, "c", Some(10), Some(228), "rwm"),
    ];

    assert!(!allowed(&rules, TYPE_CHARACTER, ACCESS_READ, 10, 229));
    assert!(allowed(&rules, TYPE_CHARACTER, ACCESS_READ, 10, 228));
}

#[test]
fn privileged_container_may_use_everything() {
    let rules = [rule(true, "a", None, None, "rwm")];

    assert!(allowed(&rules, TYPE_BLOCK, ACCESS_ALL, 254, 0));
}

/// What the rules mean, said without a program.
fn decision(rules: &[Rule], kind: i32, access: i32, major: u32, minor: u32) -> bool {
    let fits = |rule: &&Rule| {
        let accesses = if rule.allow {
            access & rule.access == access
        } else {
            access & rule.access != 0
        };
        rule.kind.is_none_or(|of_rule| of_rule == kind)
            && rule.major.is_none_or(|of_rule| of_rule == major)
            && rule.minor.is_none_or(|of_rule| of_rule == minor)
            && accesses
    };
    rules.iter().rfind(fits).is_some_and(|rule| rule.allow)
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(5),
        Just(i32::MAX as u32 + 1),
        Just(u32::MAX)
    ]
}

proptest! {
    #[test]
    fn last_rule_that_fits_decides(
        rules in proptest::collection::vec(
            (any::<bool>(), "[abc]", option::of(number()), option::of(number()), "r?w?m?"),
            0..20,
        ),
        (kind, access) in (1_i32..3, 1_i32..8),
        (major, minor) in (number(), number()),
    ) {
        let rules: Vec<_> = rules
            .iter()
            .map(|(allow, kind, major, minor, access)| rule(*allow, kind, *major, *minor, access))
            .collect();

        let found = allowed(&rules, kind, access, major.cast_signed(), minor.cast_signed());

        prop_assert_eq!(found, decision(&all(&rules), kind, access, major, minor));
    }
}
