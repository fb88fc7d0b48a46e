// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a container uses: in its guest, as the agent says, and on the host.

use std::fs;
use std::time::Instant;

use coracle_agent_api::messages::StatisticsResponse;

use super::Supervisor;
use crate::control::Usage;

/// How much longer than to find the memory of processes out it is not done again.
const REST: u32 = 20;

/// Puts together what the agent says and what the host's kernel knows.
pub fn usage(statistics: &StatisticsResponse, supervisor: &mut Supervisor<'_>) -> Usage {
    let (memory, io) = (&statistics.memory, &statistics.io);
    let total = |figure: fn(&coracle_agent_api::messages::InterfaceStatistics) -> u64| {
        statistics
            .interfaces
            .iter()
            .map(figure)
            .fold(0, u64::saturating_add)
    };
    let processes = supervisor.machine.processes();
    Usage {
        cpu_usec: statistics.cpu.usage_microseconds,
        memory: memory.current.saturating_sub(memory.inactive_file),
        memory_limit: supervisor.plan.vm.memory_mib << 20,
        pids: statistics.pids.current,
        block: [io.read_bytes, io.written_bytes],
        network: [
            total(|interface| interface.received_bytes),
            total(|interface| interface.sent_bytes),
        ],
        host_cpu_usec: processes.iter().map(|pid| processor_time(*pid)).sum(),
        host_memory: supervisor.host_memory.of(&processes),
    }
}

/// Memory of processes on the host. To find it out takes the longer the larger they are, and holds them up meanwhile: so
/// that is done seldom enough to cost little, however often it is asked for.
#[derive(Default)]
pub struct HostMemory {
    bytes: u64,
    /// Until when that is good enough.
    until: Option<Instant>,
}

impl HostMemory {
    fn of(&mut self, processes: &[u32]) -> u64 {
        let began = Instant::now();
        if self.until.is_none_or(|until| until <= began) {
            self.bytes = processes.iter().map(|pid| proportional_memory(*pid)).sum();
            self.until = Some(Instant::now() + began.elapsed() * REST);
        }
        self.bytes
    }
}

/// The processor time of a process so far, in microseconds.
fn processor_time(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    ticks(&stat).saturating_mul(1_000_000) / rustix::param::clock_ticks_per_second().max(1)
}

/// User and system time of a process in `/proc/PID/stat`, in ticks: its 14th and 15th field.
fn ticks(stat: &str) -> u64 {
    // The second field is the program's name, in parentheses and with what characters it likes.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum()
}

/// The memory of a process, in bytes, with its share of what it has in common with others.
fn proportional_memory(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    proportional(&rollup).saturating_mul(1024)
}

fn proportional(rollup: &str) -> u64 {
    rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|figure| figure.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "12 (a) b) 1 (c) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20 0";

        assert_eq!(ticks(stat), 42);
        assert_eq!(ticks(""), 0);
    }

    #[test]
    fn proportional_share_is_found() {
        let rollup =
            "00400000-7ffd ---p 0 00:00 0 [rollup]\nRss:  900 kB\nPss:  123 kB\nPss_Anon: 5 kB\n";

        assert_eq!(proportional(rollup), 123);
        assert_eq!(proportional(""), 0);
    }

    #[test]
    fn memory_is_found_out_anew_only_after_a_while() {
        let hour = Duration::from_secs(3600);
        let mut memory = HostMemory {
            bytes: 5,
            until: Some(Instant::now() + hour),
        };

        assert_eq!(memory.of(&[std::process::id()]), 5);
        memory.until = Some(Instant::now());
        assert!(memory.of(&[std::process::id()]) > 5);
    }
}
