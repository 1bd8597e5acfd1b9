//! The database's schema, as steps from one version to the next.

use std::path::Path;

use rusqlite::Connection;

use super::error::StoreError;

/// Step N brings a database from version N to N + 1. Steps are only ever added.
const STEPS: &[&str] = &[
    "
    CREATE TABLE jobs (
        id          INTEGER PRIMARY KEY AUTOINCREMENT,
        file_name   TEXT NOT NULL,
        path        TEXT NOT NULL,
        size_bytes  INTEGER NOT NULL,
        sha256      TEXT,
        priority    INTEGER NOT NULL CHECK (priority BETWEEN 0 AND 2),
        state       TEXT NOT NULL
                    CHECK (state IN ('queued', 'running', 'done', 'failed', 'skipped')),
        attempts    INTEGER NOT NULL DEFAULT 0,
        created_at  TEXT NOT NULL,
        started_at  TEXT,
        finished_at TEXT,
        report      TEXT
    );
    CREATE INDEX jobs_by_turn ON jobs (state, priority, id);

    CREATE TABLE runs (
        id          INTEGER PRIMARY KEY AUTOINCREMENT,
        job_id      INTEGER REFERENCES jobs (id),
        attempt     INTEGER NOT NULL,
        state       TEXT NOT NULL
                    CHECK (state IN ('running', 'done', 'failed', 'stopped', 'skipped', 'crashed')),
        started_at  TEXT NOT NULL,
        finished_at TEXT,
        config      TEXT NOT NULL,
        plan        TEXT,
        error       TEXT
    );
    CREATE INDEX runs_by_job ON runs (job_id, id);

    CREATE TABLE events (
        id      INTEGER PRIMARY KEY AUTOINCREMENT,
        at      TEXT NOT NULL,
        job_id  INTEGER REFERENCES jobs (id),
        run_id  INTEGER REFERENCES runs (id),
        kind    TEXT NOT NULL,
        message TEXT NOT NULL,
        details TEXT
    );

    CREATE TABLE metrics (
        run_id              INTEGER NOT NULL REFERENCES runs (id),
        step                INTEGER NOT NULL,
        loss                REAL NOT NULL,
        grad_norm           REAL NOT NULL,
        lr                  REAL NOT NULL,
        num_tokens          INTEGER NOT NULL,
        mean_token_accuracy REAL,
        tokens_per_s        REAL,
        peak_bytes          INTEGER,
        PRIMARY KEY (run_id, step)
    ) WITHOUT ROWID;

    CREATE TABLE evals (
        run_id         INTEGER NOT NULL REFERENCES runs (id),
        step           INTEGER NOT NULL,
        at             TEXT NOT NULL,
        loss           REAL,
        perplexity     REAL,
        token_accuracy REAL,
        exact_match    REAL,
        PRIMARY KEY (run_id, step)
    ) WITHOUT ROWID;

    CREATE TABLE eval_samples (
        run_id      INTEGER NOT NULL REFERENCES runs (id),
        step        INTEGER NOT NULL,
        position    INTEGER NOT NULL,
        prompt      TEXT NOT NULL,
        reference   TEXT,
        text        TEXT NOT NULL,
        new_tokens  INTEGER NOT NULL,
        exact_match INTEGER,
        PRIMARY KEY (run_id, step, position)
    ) WITHOUT ROWID;

    CREATE TABLE binding (
        id               INTEGER PRIMARY KEY CHECK (id = 1),
        architecture     TEXT NOT NULL,
        vocab_size       INTEGER NOT NULL,
        tokenizer_sha256 TEXT NOT NULL,
        base_model       TEXT NOT NULL,
        bound_at         TEXT NOT NULL
    );

    CREATE TABLE settings (
        name  TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) WITHOUT ROWID;
",
    "
    ALTER TABLE metrics ADD COLUMN memory TEXT;
",
];

/// Applies the steps that the database has not seen, each in a transaction of its own.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let known = STEPS.len() as i64;
    let open = |source| StoreError::Open { path: path.to_owned(), source };
    loop {
        let transaction = connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(open)?;
        let from: i64 =
            transaction.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(open)?;
        if from > known {
            return Err(StoreError::TooNew { path: path.to_owned(), found: from, known });
        }
        let Some(step) = usize::try_from(from).ok().and_then(|from| STEPS.get(from)) else {
            return Ok(());
        };
        let to = from + 1;
        transaction
            .execute_batch(step)
            .and_then(|()| transaction.pragma_update(None, "user_version", to))
            .and_then(|()| transaction.commit())
            .map_err(|source| StoreError::Migrate { path: path.to_owned(), from, to, source })?;
    }
}
