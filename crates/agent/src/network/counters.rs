// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the interfaces have sent and received.

use std::fs;

use coracle_agent_api::messages::InterfaceStatistics;

/// The most interfaces that are told of: a container may make many.
const INTERFACES_MAX: usize = 64;

/// The counters of all interfaces of this process' network namespace, but for the loopback.
#[must_use]
pub fn counters() -> Vec<InterfaceStatistics> {
    read(&fs::read_to_string("/proc/self/net/dev").unwrap_or_default())
}

/// Reads `/proc/net/dev`: two lines of titles, then a name and sixteen numbers a line.
fn read(table: &str) -> Vec<InterfaceStatistics> {
    table
        .lines()
        .skip(2)
        .filter_map(read_line)
        .filter(|interface| interface.name != "lo")
        .take(INTERFACES_MAX)
        .collect()
}

fn read_line(line: &str) -> Option<InterfaceStatistics> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> = numbers
        .split_whitespace()
        .map_while(|number| number.parse().ok())
        .collect();
    let number = |index: usize| numbers.get(index).copied();
    Some(InterfaceStatistics {
        name: name.trim().to_owned(),
        received_bytes: number(0)?,
        received_packets: number(1)?,
        received_errors: number(2)?,
        received_dropped: number(3)?,
        sent_bytes: number(8)?,
        sent_packets: number(9)?,
        sent_errors: number(10)?,
        sent_dropped: number(11)?,
        ..InterfaceStatistics::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0: 1234567     890    1    2    0     0          0         0  7654321     987    3    4    0     0       0          0
  cut: 1 2
";

    #[test]
    fn counters_are_read_but_for_the_loopback() {
        let counters = read(TABLE);

        let eth0 = InterfaceStatistics {
            name: "eth0".to_owned(),
            received_bytes: 1_234_567,
            received_packets: 890,
            received_errors: 1,
            received_dropped: 2,
            sent_bytes: 7_654_321,
            sent_packets: 987,
            sent_errors: 3,
            sent_dropped: 4,
            ..InterfaceStatistics::default()
        };
        assert_eq!(counters, [eth0]);
    }
}
