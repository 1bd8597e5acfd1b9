//! Every operation of a seal and of a recovery fails once, and is a crash once.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

use chandler_durable::faults::{Fault, FaultFs};
use chandler_durable::{
    Broken, DurableError, Fs, QUARANTINE_FOLDER, RealFs, SealedFolder, Verdict, newest_good,
    sweep_temporaries, verify, write_file,
};
use serde_json::json;

const FAULTS: [Fault; 3] =
    [Fault::Crash, Fault::Error(ErrorKind::StorageFull), Fault::Error(ErrorKind::PermissionDenied)];

fn seal(fs: &dyn Fs, parent: &Path, step: u64) -> Result<(), DurableError> {
    let mut folder = SealedFolder::begin(fs, &parent.join(format!("step-{step}")))?;
    folder.add_bytes("weights.bin", &vec![step as u8; 300_000])?;
    folder.add_bytes("state.json", b"{}")?;
    folder.seal(json!({ "step": step }))?;
    Ok(())
}

fn newest_step(fs: &dyn Fs, parent: &Path) -> Option<u64> {
    newest_good(fs, parent, "step-").unwrap().good.map(|(_, m)| m.extra["step"].as_u64().unwrap())
}

#[test]
fn a_seal_that_fails_anywhere_leaves_the_one_before() {
    for fault in FAULTS {
        let mut at = 1;
        loop {
            let folder = tempfile::tempdir().unwrap();
            seal(&RealFs, folder.path(), 9).unwrap();
            let faults = FaultFs::new(at, fault);
            let sealed = seal(&faults, folder.path(), 10);
            if !faults.fired() {
                assert!(sealed.is_ok());
                break;
            }
            let found = newest_step(&RealFs, folder.path()).unwrap();
            assert!(found == 10 || (sealed.is_err() && found == 9), "{fault:?} at {at}: {found}");
            sweep_temporaries(&RealFs, folder.path()).unwrap();
            let names = RealFs.list(folder.path()).unwrap();
            assert!(names.iter().all(|entry| entry.name.to_str().unwrap().starts_with("step-")));
            at += 1;
        }
        assert!(at > 15, "{at}");
    }
}

#[test]
fn a_file_that_fails_anywhere_is_old_or_new() {
    for fault in FAULTS {
        for at in 1.. {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("state");
            write_file(&RealFs, &path, b"old").unwrap();
            let faults = FaultFs::new(at, fault);
            let new = vec![b'n'; 600_000];
            let written = write_file(&faults, &path, &new);
            let bytes = fs::read(&path).unwrap();
            assert!(bytes == b"old" || bytes == new, "{fault:?} at {at}");
            if !faults.fired() {
                assert!(written.is_ok());
                break;
            }
        }
    }
}

#[test]
fn a_recovery_may_itself_be_killed() {
    for at in 1.. {
        let folder = tempfile::tempdir().unwrap();
        for step in [8, 9, 10, 11] {
            seal(&RealFs, folder.path(), step).unwrap();
        }
        File::create(folder.path().join("step-11/weights.bin")).unwrap();
        fs::remove_file(folder.path().join("step-10/state.json")).unwrap();
        let faults = FaultFs::new(at, Fault::Crash);
        let _ = newest_good(&faults, folder.path(), "step-");
        assert_eq!(newest_step(&RealFs, folder.path()), Some(9), "at {at}");
        let ward = folder.path().join(QUARANTINE_FOLDER);
        assert_eq!(RealFs.list(&ward).unwrap().len(), 2, "both are kept");
        if !faults.fired() {
            break;
        }
    }
}

#[test]
fn every_kind_of_damage_is_named() {
    let damaged = |damage: &dyn Fn(&Path)| {
        let parent = tempfile::tempdir().unwrap();
        seal(&RealFs, parent.path(), 3).unwrap();
        let folder = parent.path().join("step-3");
        damage(&folder);
        match verify(&RealFs, &folder).unwrap() {
            Verdict::Broken(broken) => broken,
            Verdict::Whole(_) => panic!("taken for whole"),
        }
    };
    let name = "weights.bin".to_owned();
    assert_eq!(damaged(&|f| fs::remove_file(f.join("manifest.json")).unwrap()), Broken::NoManifest);
    assert_eq!(
        damaged(&|f| fs::remove_file(f.join("weights.bin")).unwrap()),
        Broken::Missing { name: name.clone() }
    );
    let grow = |f: &Path| {
        let file = OpenOptions::new().append(true).open(f.join("weights.bin"));
        file.unwrap().write_all(b"x").unwrap();
    };
    let (sealed, found) = (300_000, 300_001);
    assert_eq!(damaged(&grow), Broken::Size { name: name.clone(), sealed, found });
    let flip = |f: &Path| {
        let file = OpenOptions::new().write(true).open(f.join("weights.bin"));
        file.unwrap().write_all(b"x").unwrap();
    };
    assert_eq!(damaged(&flip), Broken::Hash { name });
    let garble = |f: &Path| {
        File::create(f.join("manifest.json")).unwrap().write_all(b"{").unwrap();
    };
    assert!(matches!(damaged(&garble), Broken::BadManifest { .. }));
    let escape = |f: &Path| {
        let manifest =
            br#"{"version":1,"files":[{"name":"../x","bytes":0,"sha256":""}],"extra":0}"#;
        File::create(f.join("manifest.json")).unwrap().write_all(manifest).unwrap();
    };
    assert!(matches!(damaged(&escape), Broken::BadManifest { .. }));
}

#[test]
fn a_sealed_place_is_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    seal(&RealFs, folder.path(), 1).unwrap();
    let error = seal(&RealFs, folder.path(), 1).unwrap_err();
    assert!(matches!(error, DurableError::AlreadyExists { .. }) && error.hint().is_some());
    let mut open = SealedFolder::begin(&RealFs, &folder.path().join("step-2")).unwrap();
    for name in ["manifest.json", "../x", ".hidden", ""] {
        assert!(matches!(open.add_bytes(name, b""), Err(DurableError::BadName { .. })), "{name}");
    }
    open.add_bytes("a", b"").unwrap();
    assert!(matches!(open.add_bytes("a", b""), Err(DurableError::DuplicateName { .. })));
}

#[test]
fn numbers_in_names_count_as_numbers() {
    let folder = tempfile::tempdir().unwrap();
    for step in [9, 100, 20] {
        seal(&RealFs, folder.path(), step).unwrap();
    }
    assert_eq!(newest_step(&RealFs, folder.path()), Some(100));
    assert_eq!(newest_step(&RealFs, &folder.path().join("absent")), None);
}
