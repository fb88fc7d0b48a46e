// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The limits of a spec, which speaks of cgroup v1, as files of cgroup v2.

use coracle_agent_api::{AgentError, ErrorKind};

use crate::spec::Resources;

/// What to write to which file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub file: String,
    pub value: String,
}

/// What to write for `resources`, in this order: what is in `unified` last, since it says it exactly.
pub(super) fn settings(resources: &Resources) -> Result<Vec<Setting>, AgentError> {
    let mut settings = Vec::new();
    let mut set = |file: &str, value: String| {
        settings.push(Setting {
            file: file.to_owned(),
            value,
        });
    };

    let memory = &resources.memory;
    if let Some(limit) = memory.limit {
        set("memory.max", or_max(limit));
    }
    if let Some(reservation) = memory.reservation {
        set("memory.low", or_max(reservation));
    }
    if let Some(swap) = memory.swap {
        set("memory.swap.max", swap_alone(swap, memory.limit)?);
    }

    let cpu = &resources.cpu;
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        set("cpu.weight", weight(shares).to_string());
    }
    if cpu.quota.is_some() || cpu.period.is_some() {
        let quota = cpu.quota.map_or_else(|| "max".to_owned(), or_max);
        let period = cpu.period.filter(|period| *period != 0);
        let value = match period {
            Some(period) => format!("{quota} {period}"),
            None => quota,
        };
        set("cpu.max", value);
    }
    if let Some(burst) = cpu.burst {
        set("cpu.max.burst", burst.to_string());
    }
    if let Some(idle) = cpu.idle {
        set("cpu.idle", idle.to_string());
    }
    for (file, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            set(file, value.clone());
        }
    }

    if let Some(limit) = resources.pids.limit {
        set(
            "pids.max",
            if limit > 0 {
                limit.to_string()
            } else {
                "max".to_owned()
            },
        );
    }
    for (file, value) in &resources.unified {
        set(file, value.clone());
    }
    Ok(settings)
}

fn or_max(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

/// Swap without memory: v1 limits both together.
fn swap_alone(both: i64, memory: Option<i64>) -> Result<String, AgentError> {
    match (both, memory) {
        (..0, _) => Ok("max".to_owned()),
        (_, Some(memory @ 0..)) if both >= memory => Ok((both - memory).to_string()),
        _ => Err(AgentError::new(
            ErrorKind::InvalidSpec,
            format!("memory.swap is {both}, and not the memory limit or more"),
        )),
    }
}

/// Maps shares of v1, 2 to 262144 with 1024 as the usual, to a weight of v2, 1 to 10000, in the way of other runtimes.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::spec::{Cpu, Memory, Pids};

    fn written(resources: &Resources) -> Vec<String> {
        settings(resources)
            .unwrap()
            .into_iter()
            .map(|setting| format!("{}={}", setting.file, setting.value))
            .collect()
    }

    #[test]
    fn nothing_is_written_for_no_limits() {
        assert!(written(&Resources::default()).is_empty());
    }

    #[test]
    fn every_limit_has_its_file() {
        let resources = Resources {
            memory: Memory {
                limit: Some(1 << 20),
                reservation: Some(4096),
                swap: Some(3 << 20),
                check_before_update: None,
            },
            cpu: Cpu {
                shares: Some(1024),
                quota: Some(50_000),
                period: Some(100_000),
                burst: Some(1000),
                cpus: Some("0-1".to_owned()),
                mems: Some(String::new()),
                idle: Some(1),
            },
            pids: Pids { limit: Some(64) },
            devices: Vec::new(),
            unified: [("memory.high".to_owned(), "5".to_owned())].into(),
        };

        assert_eq!(
            written(&resources),
            [
                "memory.max=1048576",
                "memory.low=4096",
                "memory.swap.max=2097152",
                "cpu.weight=39",
                "cpu.max=50000 100000",
                "cpu.max.burst=1000",
                "cpu.idle=1",
                "cpuset.cpus=0-1",
                "pids.max=64",
                "memory.high=5",
            ]
        );
    }

    #[rstest]
    #[case(-1, Some(1024), "max")]
    #[case(-1, None, "max")]
    #[case(1024, Some(1024), "0")]
    fn swap_is_what_goes_beyond_memory(
        #[case] both: i64,
        #[case] memory: Option<i64>,
        #[case] expected: &str,
    ) {
        assert_eq!(swap_alone(both, memory).unwrap(), expected);
    }

    #[rstest]
    #[case(1024, None)]
    #[case(1024, Some(-1))]
    #[case(1024, Some(2048))]
    fn swap_below_memory_is_refused(#[case] both: i64, #[case] memory: Option<i64>) {
        assert_eq!(
            swap_alone(both, memory).unwrap_err().kind,
            ErrorKind::InvalidSpec
        );
    }

    #[rstest]
    #[case(0, 1)]
    #[case(2, 1)]
    #[case(1024, 39)]
    #[case(262_144, 10_000)]
    #[case(u64::MAX, 10_000)]
    fn shares_become_a_weight(#[case] shares: u64, #[case] expected: u64) {
        assert_eq!(weight(shares), expected);
    }

    #[rstest]
    #[case(Some(-1), None, "cpu.max=max")]
    #[case(Some(5000), None, "cpu.max=5000")]
    #[case(None, Some(100_000), "cpu.max=max 100000")]
    fn absent_half_of_the_quota_is_left_out(
        #[case] quota: Option<i64>,
        #[case] period: Option<u64>,
        #[case] expected: &str,
    ) {
        let cpu = Cpu {
            quota,
            period,
            ..Cpu::default()
        };

        assert_eq!(
            written(&Resources {
                cpu,
                ..Resources::default()
            }),
            [expected]
        );
    }
}
