// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a container uses, as the files of its cgroup say it. A file that a kernel does not have counts as zeroes.

use std::fs;

use coracle_agent_api::messages::{
    CpuStatistics, IoStatistics, MemoryStatistics, PidsStatistics, StatisticsResponse,
};

use super::{Cgroup, count_of};

impl Cgroup {
    /// What the processes in it use.
    #[must_use]
    pub fn statistics(&self) -> StatisticsResponse {
        let read = |file: &str| fs::read_to_string(self.path.join(file)).unwrap_or_default();
        StatisticsResponse {
            memory: Some(memory(read)).into(),
            cpu: Some(cpu(&read("cpu.stat"))).into(),
            pids: Some(PidsStatistics {
                current: number(&read("pids.current")).unwrap_or(0),
                limit: number(&read("pids.max")),
                ..PidsStatistics::default()
            })
            .into(),
            io: Some(io(&read("io.stat"))).into(),
            ..StatisticsResponse::default()
        }
    }
}

fn memory(read: impl Fn(&str) -> String) -> MemoryStatistics {
    let value = |file: &str| number(&read(file)).unwrap_or(0);
    let details = read("memory.stat");
    MemoryStatistics {
        current: value("memory.current"),
        peak: value("memory.peak"),
        limit: number(&read("memory.max")),
        swap_current: value("memory.swap.current"),
        inactive_file: count_of(&details, "inactive_file"),
        anonymous: count_of(&details, "anon"),
        file: count_of(&details, "file"),
        kernel: count_of(&details, "kernel"),
        oom_kills: count_of(&read("memory.events"), "oom_kill"),
        ..MemoryStatistics::default()
    }
}

fn cpu(stat: &str) -> CpuStatistics {
    CpuStatistics {
        usage_microseconds: count_of(stat, "usage_usec"),
        user_microseconds: count_of(stat, "user_usec"),
        system_microseconds: count_of(stat, "system_usec"),
        periods: count_of(stat, "nr_periods"),
        throttled_periods: count_of(stat, "nr_throttled"),
        throttled_microseconds: count_of(stat, "throttled_usec"),
        ..CpuStatistics::default()
    }
}

/// The sum over all devices, each a line: `254:0 rbytes=1 wbytes=2 rios=3 wios=4`.
fn io(stat: &str) -> IoStatistics {
    let sum = |name: &str| {
        stat.split_whitespace()
            .filter_map(|field| field.split_once('='))
            .filter(|(key, _)| *key == name)
            .filter_map(|(_, value)| value.parse().ok())
            .fold(0, u64::saturating_add)
    };
    IoStatistics {
        read_bytes: sum("rbytes"),
        written_bytes: sum("wbytes"),
        reads: sum("rios"),
        writes: sum("wios"),
        ..IoStatistics::default()
    }
}

/// The number that is all of a file; `None` for `max`.
fn number(file: &str) -> Option<u64> {
    file.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_is_the_sum_over_devices() {
        let stat = "254:0 rbytes=10 wbytes=20 rios=3 wios=4 dbytes=0 dios=0\n254:16 rbytes=1 wbytes=2 rios=1 wios=1\n8:0\n";

        let io = io(stat);

        assert_eq!(
            (io.read_bytes, io.written_bytes, io.reads, io.writes),
            (11, 22, 4, 5)
        );
    }

    #[test]
    fn limit_that_is_not_set_is_absent() {
        let files = |file: &str| match file {
            "memory.max" => "max\n",
            "memory.current" => "4096\n",
            "memory.stat" => "anon 1\nfile 2\nkernel 3\ninactive_file 4\n",
            "memory.events" => "oom 1\noom_kill 2\n",
            _ => "",
        };

        let memory = memory(|file| files(file).to_owned());

        assert_eq!((memory.limit, memory.current, memory.peak), (None, 4096, 0));
        assert_eq!((memory.inactive_file, memory.oom_kills), (4, 2));
    }

    #[test]
    fn cpu_is_read_by_its_names() {
        let cpu = cpu(
            "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 3\nnr_throttled 2\nthrottled_usec 9\n",
        );

        assert_eq!(
            (
                cpu.usage_microseconds,
                cpu.user_microseconds,
                cpu.system_microseconds
            ),
            (30, 20, 10)
        );
        assert_eq!(
            (
                cpu.periods,
                cpu.throttled_periods,
                cpu.throttled_microseconds
            ),
            (3, 2, 9)
        );
    }
}
