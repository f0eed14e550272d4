//! Whoever lacks the secret is let in by neither side, whatever is said; whoever has it may talk nonsense.
#![no_main]

use hmac::{Hmac, Mac};
use libfuzzer_sys::fuzz_target;
use sha2::Sha256;
use streamgauge::mesh::facts::Facts;
use streamgauge::mesh::handshake::{
    Accepting, Answer, Broken, CHALLENGE, Claim, Claiming, Connecting, HELLO, Key, Kind, MAGIC, body_length,
};

const SECRET: &[u8] = b"the secret of both";

fn claim() -> Claim {
    let facts = Facts { version: "1".into(), processes: 2, workers: 1, ..Facts::default() };
    Claim { from: 1, to: 0, kind: Kind::Data, facts, ahead_ms: -3, unsure_ms: 1 }
}

/// Both sides after an honest hello and challenge, and what the connecting one said.
fn begun() -> (Accepting, Claiming, Vec<u8>, Vec<u8>) {
    let (connecting, hello) = Connecting::new(Key::new(SECRET), [1; 32]);
    let (accepting, challenge) = Accepting::new(Key::new(SECRET), [2; 32], 77, hello).expect("a hello");
    let (claiming, said) = connecting.challenged(&challenge, |_| claim()).expect("a challenge");
    (accepting, claiming, said, [&hello[..], &challenge].concat())
}

fn sealed(label: &[u8], past: &[u8], body: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET).expect("a key");
    [label, past, body].iter().for_each(|part| mac.update(part));
    [body, &mac.finalize().into_bytes()].concat()
}

fuzz_target!(|data: &[u8]| {
    let Some((how, data)) = data.split_first() else { return };
    match how % 5 {
        // A stranger connects.
        0 => {
            let Some((hello, rest)) = data.split_first_chunk::<HELLO>() else { return };
            match Accepting::new(Key::new(SECRET), [2; 32], 77, *hello) {
                Err(broken) => assert!(broken == Broken::Stranger && !hello.starts_with(&MAGIC)),
                Ok((accepting, _)) => {
                    let Some((prefix, rest)) = rest.split_first_chunk::<4>() else { return };
                    let Some(length) = body_length(*prefix) else { return };
                    let refused = accepting.claimed(&rest[..length.min(rest.len())]).expect_err("let in");
                    assert_ne!(refused, Broken::Nonsense);
                }
            }
        }
        // A stranger is connected to.
        1 => {
            let Some((challenge, rest)) = data.split_first_chunk::<CHALLENGE>() else { return };
            let (connecting, _) = Connecting::new(Key::new(SECRET), [1; 32]);
            if let Ok((claiming, _)) = connecting.challenged(challenge, |_| claim()) {
                let refused = claiming.answered(rest).expect_err("trusted");
                assert_ne!(refused, Broken::Nonsense);
            }
        }
        // An honest claim, changed on its way.
        2 => {
            let (accepting, _, mut said, _) = begun();
            let before = said.clone();
            said.iter_mut().zip(data).for_each(|(byte, with)| *byte ^= with);
            let length = body_length([said[0], said[1], said[2], said[3]]);
            if said[..4] == before[..4] {
                assert_eq!(length, Some(said.len() - 4));
                assert_eq!(accepting.claimed(&said[4..]).is_ok(), said == before);
            }
        }
        // Somebody with the secret says anything.
        3 => {
            let (accepting, _, _, past) = begun();
            match accepting.claimed(&sealed(b"streamgauge mesh claim\0", &past, data)) {
                Ok((answering, claim)) => {
                    let _ = Facts::mismatch((0, &claim.facts), (1, &Facts::default()));
                    assert!(answering.answer(&Answer::NotNow(claim.facts.version)).len() > 36);
                }
                Err(broken) => assert_eq!(broken, Broken::Nonsense),
            }
        }
        _ => {
            let (_, claiming, said, past) = begun();
            let past = [past, said].concat();
            match claiming.answered(&sealed(b"streamgauge mesh answer\0", &past, data)) {
                Ok(_) => {}
                Err(broken) => assert_eq!(broken, if data.is_empty() { Broken::Secret } else { Broken::Nonsense }),
            }
        }
    }
});
