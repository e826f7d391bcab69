-- A journal as version 1 of the schema has it, from sqlite3's .dump.
BEGIN TRANSACTION;
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES runs (id),
    at REAL NOT NULL,
    state TEXT NOT NULL,
    text TEXT NOT NULL
);
INSERT INTO "events" VALUES(1,1,1750000002.0,'received','taken from queue local_test');
INSERT INTO "events" VALUES(2,2,1750000003.0,'received','taken from queue local_test');
INSERT INTO "events" VALUES(3,2,1750000004.0,'staged','to staged');
INSERT INTO "events" VALUES(4,3,1750000005.0,'received','taken from queue local_test');
INSERT INTO "events" VALUES(5,3,1750000006.0,'staged','to staged');
INSERT INTO "events" VALUES(6,3,1750000007.0,'ready','to ready');
INSERT INTO "events" VALUES(7,4,1750000008.0,'received','taken from queue local_test');
INSERT INTO "events" VALUES(8,4,1750000009.0,'staged','to staged');
INSERT INTO "events" VALUES(9,4,1750000010.0,'ready','to ready');
INSERT INTO "events" VALUES(10,4,1750000011.0,'submitting','to submitting');
INSERT INTO "events" VALUES(11,5,1750000012.0,'received','taken from queue local_test');
INSERT INTO "events" VALUES(12,5,1750000013.0,'staged','to staged');
INSERT INTO "events" VALUES(13,5,1750000014.0,'ready','to ready');
INSERT INTO "events" VALUES(14,5,1750000015.0,'submitting','to submitting');
INSERT INTO "events" VALUES(15,5,1750000016.0,'submitted','to submitted');
INSERT INTO "events" VALUES(16,6,1750000017.0,'received','taken from queue local_test');
INSERT INTO "events" VALUES(17,6,1750000018.0,'staged','to staged');
INSERT INTO "events" VALUES(18,6,1750000019.0,'ready','to ready');
INSERT INTO "events" VALUES(19,6,1750000020.0,'submitting','to submitting');
INSERT INTO "events" VALUES(20,6,1750000021.0,'submitted','to submitted');
INSERT INTO "events" VALUES(21,6,1750000022.0,'running','to running');
INSERT INTO "events" VALUES(22,7,1750000023.0,'received','taken from queue local_test');
INSERT INTO "events" VALUES(23,7,1750000024.0,'ending','failed: why');
INSERT INTO "events" VALUES(24,7,1750000025.0,'done','results are returned');
INSERT INTO "events" VALUES(25,8,1750000026.0,'done','it is not JSON');
INSERT INTO "events" VALUES(26,9,1750000027.0,'received','taken from queue local_test');
INSERT INTO "events" VALUES(27,9,1750000028.0,'received','x');
CREATE TABLE lease (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL,
    host TEXT NOT NULL,
    boot TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started TEXT NOT NULL,
    beat_at REAL NOT NULL
);
INSERT INTO "lease" VALUES(1,1,'host','boot',0,'',1750000000.0);
CREATE TABLE messages (run INTEGER PRIMARY KEY REFERENCES runs (id), payload BLOB NOT NULL);
INSERT INTO "messages" VALUES(1,X'7B226578706572696D656E74223A207B226B6579223A20227265636569766564227D7D');
INSERT INTO "messages" VALUES(2,X'7B226578706572696D656E74223A207B226B6579223A2022737461676564227D7D');
INSERT INTO "messages" VALUES(3,X'7B226578706572696D656E74223A207B226B6579223A20227265616479227D7D');
INSERT INTO "messages" VALUES(4,X'7B226578706572696D656E74223A207B226B6579223A20227375626D697474696E67227D7D');
INSERT INTO "messages" VALUES(5,X'7B226578706572696D656E74223A207B226B6579223A20227375626D6974746564227D7D');
INSERT INTO "messages" VALUES(6,X'7B226578706572696D656E74223A207B226B6579223A202272756E6E696E67227D7D');
INSERT INTO "messages" VALUES(7,X'7B226578706572696D656E74223A207B226B6579223A20226F766572205C75303065345C6E2771756F74656427227D7D');
INSERT INTO "messages" VALUES(8,X'FF006A756E6B');
INSERT INTO "messages" VALUES(9,X'7B226578706572696D656E74223A207B226B6579223A202263616E63656C6C6564227D7D');
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO "meta" VALUES('install','0123456789abcdef');
CREATE TABLE queues (name TEXT PRIMARY KEY, gone_since REAL);
INSERT INTO "queues" VALUES('local_test',NULL);
INSERT INTO "queues" VALUES('local_old',5.0);
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    digest TEXT NOT NULL,
    key TEXT NOT NULL,
    state TEXT NOT NULL,
    generation INTEGER NOT NULL DEFAULT 1,
    attempt INTEGER NOT NULL DEFAULT 0,
    outcome TEXT,
    reason TEXT NOT NULL DEFAULT '',
    request TEXT NOT NULL DEFAULT '{}',
    max_duration REAL,
    expires_at REAL,
    received_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    not_before REAL NOT NULL DEFAULT 0,
    tries INTEGER NOT NULL DEFAULT 0,
    run_dir TEXT NOT NULL DEFAULT '',
    image TEXT NOT NULL DEFAULT '',
    tag TEXT NOT NULL DEFAULT '',
    job_id TEXT NOT NULL DEFAULT '',
    gpu_ids TEXT NOT NULL DEFAULT '[]',
    exit_code INTEGER,
    started_at REAL,
    finished_at REAL,
    host TEXT NOT NULL DEFAULT '',
    cancelling TEXT NOT NULL DEFAULT '',
    removing INTEGER NOT NULL DEFAULT 0,
    notes TEXT NOT NULL DEFAULT '[]',
    UNIQUE (queue, digest)
);
INSERT INTO "runs" VALUES(1,'local_test','8b0addf0664132f2ac18592029c3871436f4406d58fad7ebd44269d0248e9948','received','received',1,0,NULL,'','{"cpus": 2, "memory": 3221225472, "disk": 4, "gpus": 1, "gpu_memory": 5}',60.5,1760000000.25,1750000002.0,1750000002.0,0.0,0,'','','','','[]',NULL,NULL,NULL,'','',0,'["a note", "it''s"]');
INSERT INTO "runs" VALUES(2,'local_test','6496655d42f17899c7b40a501a0e336adf26062e2bed09f8fbe59ef24a080d09','staged','staged',1,0,NULL,'','{"cpus": 1, "memory": 0, "disk": 0, "gpus": 0, "gpu_memory": 0}',NULL,NULL,1750000003.0,1750000004.0,0.0,0,'/runs/staged-1','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','','','[]',NULL,NULL,NULL,'','',0,'[]');
INSERT INTO "runs" VALUES(3,'local_test','702bf7eee23f7d659758eb2f981a0888497e748438f4915b8c760460fb668d86','ready','ready',1,0,NULL,'','{"cpus": 1, "memory": 0, "disk": 0, "gpus": 0, "gpu_memory": 0}',NULL,NULL,1750000005.0,1750000007.0,0.0,0,'/runs/ready-1','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','','','[]',NULL,NULL,NULL,'','',0,'[]');
INSERT INTO "runs" VALUES(4,'local_test','3d53907118c0f286ad12f3fc9c81de72a7d1d0765698dc6d84aeb7653699ffba','submitting','submitting',1,1,NULL,'','{"cpus": 1, "memory": 0, "disk": 0, "gpus": 0, "gpu_memory": 0}',NULL,NULL,1750000008.0,1750000011.0,0.0,0,'/runs/submitting-1','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','hraaaa000000002','','["GPU-1"]',NULL,NULL,NULL,'','',0,'[]');
INSERT INTO "runs" VALUES(5,'local_test','e3ad7b9c044fbfa9288f268513a7363c48803f4018a7b96a494162645027c0d7','submitted','submitted',1,1,NULL,'','{"cpus": 1, "memory": 0, "disk": 0, "gpus": 0, "gpu_memory": 0}',NULL,NULL,1750000012.0,1750000016.0,0.0,0,'/runs/submitted-1','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','hraaaa000000003','703@host','["GPU-1"]',NULL,NULL,NULL,'','',0,'[]');
INSERT INTO "runs" VALUES(6,'local_test','efbd2781a100ea6eb96f98db0541025bb0070ae5b9e155914fcfc0f4ba541d8e','running','running',1,1,NULL,'','{"cpus": 1, "memory": 0, "disk": 0, "gpus": 0, "gpu_memory": 0}',NULL,NULL,1750000017.0,1750000022.0,0.0,0,'/runs/running-1','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','hraaaa000000004','704@host','["GPU-1"]',NULL,NULL,NULL,'','',0,'[]');
INSERT INTO "runs" VALUES(7,'local_test','950ab76209db83d589ad96611f73406ec5f24064684e0d37e73246dc7d41ea11','over ä
''quoted''','done',1,0,'failed','why','{"cpus": 1, "memory": 0, "disk": 0, "gpus": 0, "gpu_memory": 0}',NULL,NULL,1750000023.0,1750000025.0,0.0,0,'','','','','[]',3,1.5,2.5,'n1','',0,'[]');
INSERT INTO "runs" VALUES(8,'local_test','069cf2054f0881a36dc64bc989a5ee83227be54baba539739adfca1d2aaa8981','?','done',1,0,'rejected','it is not JSON','{"cpus": 1, "memory": 0, "disk": 0, "gpus": 0, "gpu_memory": 0}',NULL,NULL,1750000026.0,1750000026.0,0.0,0,'','','','','[]',NULL,NULL,NULL,'','',0,'[]');
INSERT INTO "runs" VALUES(9,'local_test','f859d7e17eb2ff8854b29127e9827aca79cbbb224dc2e2ed4baa645a73c1383c','cancelled','staged',2,0,NULL,'','{"cpus": 1, "memory": 0, "disk": 0, "gpus": 0, "gpu_memory": 0}',NULL,NULL,1750000027.0,1750000029.0,0.0,0,'','','','','[]',NULL,NULL,NULL,'','its queue was deleted',1,'[]');
CREATE INDEX runs_by_state ON runs (state);
CREATE INDEX runs_by_key ON runs (key);
CREATE INDEX events_by_run ON events (run);
COMMIT;
PRAGMA user_version = 1;
