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
    // The curves of long runs: 32 steps to a row, and 1024. Row `bucket` has the steps after
    // `bucket * width` up to `(bucket + 1) * width`, and is made when the last of them is there.
    "
    CREATE TABLE curves (
        run_id        INTEGER NOT NULL REFERENCES runs (id),
        width         INTEGER NOT NULL,
        bucket        INTEGER NOT NULL,
        first_step    INTEGER NOT NULL,
        last_step     INTEGER NOT NULL,
        count         INTEGER NOT NULL,
        num_tokens    INTEGER NOT NULL,
        peak_bytes    INTEGER,
        loss_min      REAL, loss_mean      REAL, loss_max      REAL,
        grad_norm_min REAL, grad_norm_mean REAL, grad_norm_max REAL,
        lr_min        REAL, lr_mean        REAL, lr_max        REAL,
        accuracy_min  REAL, accuracy_mean  REAL, accuracy_max  REAL,
        speed_min     REAL, speed_mean     REAL, speed_max     REAL,
        memory        TEXT,
        PRIMARY KEY (run_id, width, bucket)
    ) WITHOUT ROWID;

    CREATE TRIGGER curves_grow AFTER INSERT ON metrics WHEN NEW.step % 32 = 0 BEGIN
        INSERT OR REPLACE INTO curves
        SELECT NEW.run_id, 32, NEW.step / 32 - 1, min(step), max(step), count(*),
               max(num_tokens), max(peak_bytes),
               min(loss), avg(loss), max(loss),
               min(grad_norm), avg(grad_norm), max(grad_norm),
               min(lr), avg(lr), max(lr),
               min(mean_token_accuracy), avg(mean_token_accuracy), max(mean_token_accuracy),
               min(tokens_per_s), avg(tokens_per_s), max(tokens_per_s),
               (SELECT json_group_object(key, value) FROM
                    (SELECT key, max(value) AS value FROM metrics, json_each(metrics.memory)
                     WHERE run_id = NEW.run_id AND step > NEW.step - 32 AND step <= NEW.step
                     GROUP BY key))
        FROM metrics
        WHERE run_id = NEW.run_id AND step > NEW.step - 32 AND step <= NEW.step;

        INSERT OR REPLACE INTO curves
        SELECT NEW.run_id, 1024, NEW.step / 1024 - 1, min(first_step), max(last_step), sum(count),
               max(num_tokens), max(peak_bytes),
               min(loss_min), sum(loss_mean * count) / sum(count), max(loss_max),
               min(grad_norm_min), sum(grad_norm_mean * count) / sum(count), max(grad_norm_max),
               min(lr_min), sum(lr_mean * count) / sum(count), max(lr_max),
               min(accuracy_min), sum(accuracy_mean * count) / sum(iif(accuracy_mean IS NULL, 0, count)), max(accuracy_max),
               min(speed_min), sum(speed_mean * count) / sum(iif(speed_mean IS NULL, 0, count)), max(speed_max),
               (SELECT json_group_object(key, value) FROM
                    (SELECT key, max(value) AS value FROM curves, json_each(curves.memory)
                     WHERE run_id = NEW.run_id AND width = 32
                       AND bucket >= NEW.step / 32 - 32 AND bucket < NEW.step / 32
                     GROUP BY key))
        FROM curves
        WHERE run_id = NEW.run_id AND width = 32
          AND bucket >= NEW.step / 32 - 32 AND bucket < NEW.step / 32
          AND NEW.step % 1024 = 0
        GROUP BY run_id;
    END;

    -- For the steps that are there already.
    INSERT OR REPLACE INTO metrics SELECT * FROM metrics WHERE step % 32 = 0 ORDER BY run_id, step;
",
    // Several sets in an evaluation, several metrics of each, several answers to a question.
    // `asked` is the same where the same was asked: values with one `asked` can be compared.
    "
    CREATE TABLE scores (
        run_id    INTEGER NOT NULL REFERENCES runs (id),
        step      INTEGER NOT NULL,
        set_name  TEXT NOT NULL,
        metric    TEXT NOT NULL,
        asked     TEXT NOT NULL,
        value     REAL NOT NULL,
        low       REAL,
        high      REAL,
        count     INTEGER NOT NULL,
        gain      REAL,
        gain_low  REAL,
        gain_high REAL,
        PRIMARY KEY (run_id, step, set_name, metric)
    ) WITHOUT ROWID;
    CREATE INDEX scores_by_question ON scores (asked, metric, run_id, step);

    CREATE TABLE answers (
        run_id        INTEGER NOT NULL REFERENCES runs (id),
        step          INTEGER NOT NULL,
        set_name      TEXT NOT NULL,
        position      INTEGER NOT NULL,
        attempt       INTEGER NOT NULL,
        prompt        TEXT NOT NULL,
        reference     TEXT,
        text          TEXT NOT NULL,
        score         REAL,
        prompt_tokens INTEGER,
        new_tokens    INTEGER NOT NULL,
        seconds       REAL,
        PRIMARY KEY (run_id, step, set_name, position, attempt)
    ) WITHOUT ROWID;
    INSERT INTO answers
    SELECT run_id, step, 'held-out', position, 0, prompt, reference, text, exact_match, NULL,
           new_tokens, NULL
    FROM eval_samples;
    DROP TABLE eval_samples;
",
    // What webhooks have yet to be told. `hook` is a digest of the address, `key` what the receiver
    // knows repeats by.
    "
    CREATE TABLE outbox (
        id         INTEGER PRIMARY KEY AUTOINCREMENT,
        key        TEXT NOT NULL UNIQUE,
        hook       TEXT NOT NULL,
        event_id   INTEGER NOT NULL REFERENCES events (id),
        created_ms INTEGER NOT NULL,
        failures   INTEGER NOT NULL DEFAULT 0,
        next_ms    INTEGER NOT NULL,
        UNIQUE (hook, event_id)
    );
    CREATE INDEX outbox_by_turn ON outbox (hook, next_ms, id);
",
    // What is asked for at every look, and must not grow with what has been.
    "
    CREATE INDEX jobs_by_path ON jobs (path);
    CREATE INDEX events_by_kind ON events (kind, id);
    CREATE INDEX runs_going_on ON runs (id) WHERE state = 'running';
",
    // The newest run when a job was last started over; and the list of what is over, newest first.
    "
    ALTER TABLE jobs ADD COLUMN runs_before INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX jobs_by_end ON jobs (finished_at, id)
        WHERE state IN ('done', 'failed', 'skipped');
",
    // What each layer measured in a step that was one to look; `position` is its place in the model.
    "
    CREATE TABLE layers (
        run_id      INTEGER NOT NULL REFERENCES runs (id),
        step        INTEGER NOT NULL,
        position    INTEGER NOT NULL,
        layer       TEXT NOT NULL,
        grad_norm   REAL NOT NULL,
        update_norm REAL,
        weight_norm REAL,
        PRIMARY KEY (run_id, step, position)
    ) WITHOUT ROWID;
",
    // What the model that everything descends from scored in what is asked of its descendants.
    "
    CREATE TABLE base_scores (
        asked    TEXT NOT NULL,
        metric   TEXT NOT NULL,
        set_name TEXT NOT NULL,
        value    REAL NOT NULL,
        PRIMARY KEY (asked, metric)
    ) WITHOUT ROWID;
    CREATE TABLE base_answers (
        asked         TEXT NOT NULL,
        position      INTEGER NOT NULL,
        attempt       INTEGER NOT NULL,
        set_name      TEXT NOT NULL,
        prompt        TEXT NOT NULL,
        reference     TEXT,
        text          TEXT NOT NULL,
        score         REAL,
        prompt_tokens INTEGER,
        new_tokens    INTEGER NOT NULL,
        seconds       REAL,
        PRIMARY KEY (asked, position, attempt)
    ) WITHOUT ROWID;
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
