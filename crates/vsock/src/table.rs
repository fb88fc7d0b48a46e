// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A table of bounded size whose entries are named by tokens, and the queue of those that are
//! ready.
//!
//! A token names one entry for ever: once the entry is gone, its token finds nothing, though the
//! place may have been given to another. So an event for a socket that was closed a moment ago, in
//! the same batch, cannot reach its successor.

use std::collections::VecDeque;

/// The name of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    index: u32,
    generation: u32,
}

impl From<Token> for u64 {
    fn from(token: Token) -> Self {
        Self::from(token.generation) << 32 | Self::from(token.index)
    }
}

impl From<u64> for Token {
    fn from(number: u64) -> Self {
        Self {
            index: (number & u64::from(u32::MAX)) as u32,
            generation: (number >> 32) as u32,
        }
    }
}

/// The table.
#[derive(Debug)]
pub struct Table<T> {
    places: Vec<Place<T>>,
    vacant: Vec<u32>,
    capacity: u32,
    /// Places in the order of their turns. A place is in it at most once, whoever holds it by then,
    /// so entries that come and go cannot make the queue grow.
    ready: VecDeque<u32>,
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    queued: bool,
    entry: Option<T>,
}

impl<T> Table<T> {
    /// An empty table for `capacity` entries. Memory is taken as entries come.
    pub const fn new(capacity: u32) -> Self {
        Self {
            places: Vec::new(),
            vacant: Vec::new(),
            capacity,
            ready: VecDeque::new(),
        }
    }

    /// Puts an entry in; `None` if the table is full.
    pub fn insert(&mut self, entry: T) -> Option<Token> {
        if let Some(index) = self.vacant.pop() {
            let place = &mut self.places[index as usize];
            place.entry = Some(entry);
            return Some(Token {
                index,
                generation: place.generation,
            });
        }
        let index = u32::try_from(self.places.len()).ok()?;
        if index >= self.capacity {
            return None;
        }
        self.places.push(Place {
            generation: 0,
            queued: false,
            entry: Some(entry),
        });
        Some(Token {
            index,
            generation: 0,
        })
    }

    /// The entry with that name.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let place = self.places.get_mut(token.index as usize)?;
        place
            .entry
            .as_mut()
            .filter(|_| place.generation == token.generation)
    }

    /// Makes another entry of the one with that name; the name stays.
    pub fn replace(&mut self, token: Token, with: impl FnOnce(T) -> T) {
        if self.get_mut(token).is_some() {
            let place = &mut self.places[token.index as usize];
            place.entry = place.entry.take().map(with);
        }
    }

    /// Takes the entry out.
    pub fn remove(&mut self, token: Token) -> Option<T> {
        self.get_mut(token)?;
        let place = &mut self.places[token.index as usize];
        place.generation = place.generation.wrapping_add(1);
        self.vacant.push(token.index);
        place.entry.take()
    }

    /// Takes all entries out.
    pub fn clear(&mut self) {
        self.ready.clear();
        for (index, place) in (0..).zip(&mut self.places) {
            place.queued = false;
            if place.entry.take().is_some() {
                place.generation = place.generation.wrapping_add(1);
                self.vacant.push(index);
            }
        }
    }

    /// Puts the entry at the end of the queue, if it is not in it.
    pub fn enqueue(&mut self, token: Token) {
        if self.get_mut(token).is_none() {
            return;
        }
        let place = &mut self.places[token.index as usize];
        if !place.queued {
            place.queued = true;
            self.ready.push_back(token.index);
        }
    }

    /// The entry whose turn it is; it stays at the head of the queue.
    pub fn front(&mut self) -> Option<Token> {
        loop {
            let index = *self.ready.front()?;
            let place = &mut self.places[index as usize];
            if place.entry.is_some() {
                return Some(Token {
                    index,
                    generation: place.generation,
                });
            }
            place.queued = false;
            self.ready.pop_front();
        }
    }

    /// Ends the turn of the entry at the head: it leaves the queue.
    pub fn end_turn(&mut self) {
        if let Some(index) = self.ready.pop_front() {
            self.places[index as usize].queued = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_table_takes_no_more() {
        let mut table = Table::new(2);
        table.insert('a').unwrap();
        table.insert('b').unwrap();

        assert_eq!(table.insert('c'), None);
    }

    #[test]
    fn place_is_used_again_under_another_name() {
        let mut table = Table::new(1);
        let first = table.insert('a').unwrap();
        assert_eq!(table.remove(first), Some('a'));

        let second = table.insert('b').unwrap();

        assert_ne!(first, second);
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get_mut(second), Some(&mut 'b'));
    }

    #[test]
    fn token_survives_the_number() {
        let token = Token {
            index: 7,
            generation: 0x8000_0001,
        };

        assert_eq!(Token::from(u64::from(token)), token);
    }

    #[test]
    fn turns_go_round() {
        let mut table = Table::new(3);
        let a = table.insert('a').unwrap();
        let b = table.insert('b').unwrap();
        table.enqueue(a);
        table.enqueue(b);
        table.enqueue(a);

        let mut turns = Vec::new();
        for again in [Some(a), Some(b), None, None] {
            turns.push(table.front());
            table.end_turn();
            again.into_iter().for_each(|token| table.enqueue(token));
        }

        assert_eq!(turns, [Some(a), Some(b), Some(a), Some(b)]);
        assert_eq!(table.front(), None);
    }

    #[test]
    fn entries_that_come_and_go_do_not_make_the_queue_grow() {
        let mut table = Table::new(1);

        for _ in 0..100 {
            let token = table.insert('a').unwrap();
            table.enqueue(token);
            table.remove(token);
        }

        assert!(table.ready.len() <= 1);
        assert_eq!(table.front(), None);
    }

    #[test]
    fn cleared_table_has_forgotten_all_names() {
        let mut table = Table::new(2);
        let a = table.insert('a').unwrap();
        table.enqueue(a);

        table.clear();

        assert_eq!(table.get_mut(a), None);
        assert_eq!(table.front(), None);
        assert!(table.insert('b').is_some());
        assert!(table.insert('c').is_some());
    }
}
