//! State that is saved in the middle comes back bit for bit, and bad state is an error and never a panic.

#![allow(clippy::unwrap_used)] // A test may.

mod common;

use common::{Random, Worker, names, readings};
use proptest::prelude::*;
use streamgauge_operators::*;

/// Random epochs; pauses long enough for silence and forgetting, and a deaf stretch now and then.
fn run(worker: &mut Worker, random: &mut Random, from: Epoch, epochs: u64) -> Epoch {
    let names = names();
    let mut epoch = from;
    for _ in 0..epochs {
        epoch += match random.below(60) {
            0 => 20_000 + random.below(60_000),
            1 => 3000,
            _ => 20 + random.below(700),
        };
        // All that is due before the epoch, before what is told from it on.
        worker.epoch(epoch, &[]);
        if random.below(100) == 0 {
            let counting = worker.counted.counting();
            worker.counted.set(epoch, !counting);
        }
        let batch = readings(worker, &names, random, epoch);
        worker.epoch(epoch, &batch);
    }
    epoch
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn a_restart_changes_no_bit_and_no_answer(seed: u64, before in 1..400u64, after in 1..300u64) {
        let mut random = Random(seed);
        let mut worker = Worker::new();
        let epoch = run(&mut worker, &mut random, 1000, before);
        worker.take();
        let saved = worker.save();
        let mut next = Worker::restore(&saved, &worker.counted.save(), epoch).unwrap();
        prop_assert_eq!(&next.save(), &saved);
        prop_assert_eq!(next.take(), Vec::<String>::new());
        worker.tally = Tally::default();
        let seed = random.0;
        run(&mut worker, &mut random, epoch, after);
        run(&mut next, &mut Random(seed), epoch, after);
        prop_assert_eq!(worker.take(), next.take());
        prop_assert_eq!(worker.tally, next.tally);
        prop_assert_eq!(worker.save(), next.save());
    }
}

fn filled() -> ([GroupStates; 3], Vec<u8>, Epoch) {
    let mut worker = Worker::new();
    let epoch = run(&mut worker, &mut Random(3), 1000, 300);
    assert!(worker.transitions.len() > 100, "too few transitions to test anything");
    (worker.save(), worker.counted.save(), epoch)
}

/// Restores, and if that went well, goes on for a while.
fn survives(saved: &[GroupStates; 3], counted: &[u8], epoch: Epoch) -> bool {
    let Ok(mut worker) = Worker::restore(saved, counted, epoch) else { return false };
    run(&mut worker, &mut Random(5), epoch, 40);
    worker.save();
    worker.take();
    true
}

#[test]
fn every_truncation_is_an_error() {
    let (saved, counted, epoch) = filled();
    assert!(survives(&saved, &counted, epoch));
    for operator in 0..3 {
        let (group, bytes) = saved[operator].iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
        for end in 0..bytes.len() {
            let mut cut = [const { GroupStates::new() }; 3];
            cut[operator].insert(*group, bytes[..end].to_vec());
            assert!(Worker::restore(&cut, &counted, epoch).is_err(), "operator {operator}, {end} bytes");
        }
    }
}

#[test]
fn flipped_bits_never_panic() {
    let (saved, counted, epoch) = filled();
    let mut random = Random(11);
    let mut restored = 0;
    for operator in 0..3 {
        for (group, bytes) in saved[operator].iter().take(2) {
            for bit in (0..bytes.len() * 8).step_by(bytes.len() / 800 + 1) {
                let mut bad = saved.clone();
                if let Some(bytes) = bad[operator].get_mut(group) {
                    bytes[bit / 8] ^= 1 << (bit % 8);
                    if random.below(3) == 0 {
                        let at = random.below(bytes.len() as u64) as usize;
                        bytes[at] = random.below(256) as u8;
                    }
                }
                restored += usize::from(survives(&bad, &counted, epoch));
            }
        }
    }
    assert!(restored > 100, "{restored}: some flips only change a value");
}

#[test]
fn the_error_says_whose_state_and_where() {
    let (saved, _, _) = filled();
    let (group, bytes) = saved[1].first_key_value().unwrap();
    let dictionary = SharedDictionary::default();
    let mut rolling = Rolling::new(vec![], Default::default(), dictionary);
    let error = rolling.load(group + 1, bytes).unwrap_err().to_string();
    assert!(error.starts_with("state of rolling, byte ") && error.ends_with(": a series is of its group"), "{error}");
}
