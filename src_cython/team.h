/* Several threads for a task, the twin of fastconv/_numba/_parallel.py. A team is the caller's thread and helpers, which need
   no GIL; all modules share the teams of one, cpu, and reach them by a capsule.

   A job is open while tasks are left. The caller writes it down, opens the gate and takes tasks as everyone does: one after
   the other of its own part, of which there are as many as threads, then what is left of the others'. Neighbouring tasks read
   and write side by side, where cores would take lines and what they fetch ahead from each other; and the next job often
   goes on with what this one has left in a core's cache. A helper enters at the gate, one for each place, and whoever finds
   no task left shuts it and leaves.
   The caller waits for those inside, never for one that has not come: on a busy machine, or where a helper that slept is
   woken on the caller's own CPU, it does the work of those by itself. An OpenMP region would wait for them, for milliseconds.
   Who waits spins for a while, as the next job often follows at once, and then sleeps: a helper on the lock `wake`, the
   caller on `done`. Systems may wake a helper on the caller's own CPU and leave it there, however long the caller works. So
   the caller gives way, once it has worked for a while without a helper that it woke, and the helper moves to another CPU.
   Several Python threads lead a team each. A fork has no helpers, so it starts teams of its own. */
#ifndef FASTCONV_TEAM_H
#define FASTCONV_TEAM_H

#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* for CPU sets */
#endif
#include <Python.h>
#include <pythread.h>
#include <stdint.h>
#include <stdlib.h>

typedef void (*team_task)(const void *job, Py_ssize_t task, int worker);
typedef void (*team_run_t)(team_task function, const void *job, Py_ssize_t n_tasks, int n_threads);

#define TEAM_MODULE "fastconv._cython.cpu"
#define TEAM_CAPSULE TEAM_MODULE ".run"

static team_run_t team_run_shared;

/* Before a module's first job. */
static int team_join(void)
{
    PyObject *module = PyImport_ImportModule(TEAM_MODULE); /* which PyCapsule_Import only looks for */
    if (!module) return -1;
    Py_DECREF(module);
    team_run_shared = (team_run_t)PyCapsule_Import(TEAM_CAPSULE, 0);
    return team_run_shared ? 0 : -1;
}

/* Tasks 0 ... n_tasks - 1 on up to n_threads threads, worker 0 <= worker < n_threads. */
static inline void each_task(team_task function, const void *job, Py_ssize_t n_tasks, int n_threads)
{
    if (n_threads > 1 && n_tasks > 1) {
        team_run_shared(function, job, n_tasks, n_threads);
        return;
    }
    for (Py_ssize_t task = 0; task < n_tasks; task++) function(job, task, 0);
}

#ifdef FASTCONV_TEAM /* what follows is compiled once, in cpu */

#ifndef _WIN32
#include <pthread.h>
#include <signal.h>
#endif
#ifdef __linux__
#include <sched.h>
#include <time.h>
#endif

#if defined(__x86_64__) || defined(__i386__)
#define TEAM_PAUSE() __builtin_ia32_pause()
#else
#define TEAM_PAUSE() ((void)0)
#endif

/* Pauses, of 10 to 140 cycles each by kind of CPU: as long as what lies between two layers of a network takes in NumPy */
enum { TEAM_SPINS = 30000 };

enum { TEAM_PATIENCE = 100000 }; /* ns; to give way costs about as much, where there is something to give way to */
enum { TEAM_STACK = 1 << 20 }; /* bytes of a helper's stack; tiles of Winograd take 128 KB */

/* The gate: places still free, above them who is inside, above that a bit: the caller sleeps */
static const int64_t TEAM_PLACES = ((int64_t)1 << 16) - 1, TEAM_INSIDE = (int64_t)1 << 16, TEAM_ASLEEP = (int64_t)1 << 32;

/* What threads change while others read it has a cache line of its own. */
#define TEAM_LINE __attribute__((aligned(64)))

typedef struct Part {
    TEAM_LINE int64_t taken; /* tasks of it, and how often one was looked for in vain */
} Part;

typedef struct Team {
    TEAM_LINE int64_t gate;
    TEAM_LINE team_task function; /* the job */
    const void *job;
    int64_t n_tasks, n_workers, spins; /* spins: how often who waits looks before sleeping */
    Part *parts;
    int64_t woken, patience; /* when a helper was woken that has not run since, in ns, 0: none; how long the caller bears it */
    int cpu;                 /* the caller's */
    TEAM_LINE int64_t sleepers, waking; /* helpers asleep; 1 while one of them is being woken */
    TEAM_LINE PyThread_type_lock wake, done;
    void *memory; /* of the parts, so many */
    int room, n_helpers;
    struct Team *next; /* idle team */
} Team;

static Team *team_idle;
static int64_t team_idle_taken; /* 1 while a thread reads or writes team_idle */
static int team_cpus = 1;       /* that this process may use */

#define TEAM_READ(p) __atomic_load_n(p, __ATOMIC_SEQ_CST)
#define TEAM_WRITE(p, value) __atomic_store_n(p, value, __ATOMIC_SEQ_CST)
#define TEAM_ADD(p, value) __atomic_fetch_add(p, value, __ATOMIC_SEQ_CST)

/* What stood at p; if that was old, new stands there now. */
static int64_t team_swap(int64_t *p, int64_t old, int64_t new)
{
    __atomic_compare_exchange_n(p, &old, new, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return old;
}

#ifdef __linux__
static int64_t team_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Somebody is about to wake a helper. */
static void team_summon(Team *team)
{
    if (TEAM_READ(&team->woken)) return;
    TEAM_WRITE(&team->patience, TEAM_PATIENCE);
    TEAM_WRITE(&team->woken, team_now());
}

/* The caller, before a job. */
static void team_stand(Team *team)
{
    if (TEAM_READ(&team->sleepers) > 0) TEAM_WRITE(&team->cpu, sched_getcpu());
}

/* The caller, between two tasks; each time in vain it waits twice as long for the next. */
static void team_give_way(Team *team)
{
    int64_t woken = TEAM_READ(&team->woken), patience = TEAM_READ(&team->patience);
    if (!woken || team_now() - woken < patience) return;
    TEAM_WRITE(&team->patience, 2 * patience);
    TEAM_WRITE(&team->cpu, sched_getcpu());
    sched_yield();
}

/* A helper that runs again goes from the caller's CPU to another. */
static void team_come(Team *team)
{
    int cpu = TEAM_READ(&team->cpu);
    cpu_set_t all, others;
    if (TEAM_READ(&team->woken) && cpu >= 0 && cpu < CPU_SETSIZE && sched_getcpu() == cpu
        && !sched_getaffinity(0, sizeof all, &all)) {
        others = all;
        CPU_CLR(cpu, &others);
        if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others)) sched_setaffinity(0, sizeof all, &all);
    }
    TEAM_WRITE(&team->woken, 0);
}
#else
static void team_summon(Team *team) { (void)team; }
static void team_stand(Team *team) { (void)team; }
static void team_give_way(Team *team) { (void)team; }
static void team_come(Team *team) { (void)team; }
#endif

/* Wake a helper, who wakes the next. Helpers leave the sleepers one at a time, while `waking` is 1: so the lock is never
   released twice, nor for none. */
static void team_wake(Team *team)
{
    if (TEAM_READ(&team->sleepers) == 0 || team_swap(&team->waking, 0, 1) != 0) return;
    if (TEAM_READ(&team->sleepers) > 0) {
        team_summon(team);
        PyThread_release_lock(team->wake);
    } else {
        TEAM_WRITE(&team->waking, 0);
    }
}

/* Take tasks until none is left, then shut the gate and leave; what the gate is after that. */
static int64_t team_perform(Team *team, int worker)
{
    team_task function = team->function;
    const void *job = team->job;
    int64_t n_workers = team->n_workers, least = team->n_tasks / n_workers, longer = team->n_tasks % n_workers;
    int64_t i, part, size, first, taken, gate, left, found;
    for (i = 0; i < n_workers; i++) {
        part = (worker + i) % n_workers;
        first = part * least + (part < longer ? part : longer);
        size = least + (part < longer);
        while (TEAM_READ(&team->parts[part].taken) < size && (taken = TEAM_ADD(&team->parts[part].taken, 1)) < size) {
            function(job, first + taken, worker);
            if (worker == 0) team_give_way(team);
        }
    }
    for (gate = TEAM_READ(&team->gate);; gate = found) {
        left = (gate & ~TEAM_PLACES) - TEAM_INSIDE;
        found = team_swap(&team->gate, gate, left == TEAM_ASLEEP ? 0 : left);
        if (found == gate) return left;
    }
}

/* The caller's part of a job. */
static void team_lead(Team *team, team_task function, const void *job, Py_ssize_t n_tasks, int n_workers)
{
    /* Who spins takes a CPU from those who work where there are more threads than CPUs */
    int64_t spins = n_workers <= team_cpus ? TEAM_SPINS : 0, gate, found;
    team->function = function;
    team->job = job;
    team->n_tasks = n_tasks;
    team->n_workers = n_workers;
    TEAM_WRITE(&team->spins, spins);
    for (int i = 0; i < n_workers; i++) TEAM_WRITE(&team->parts[i].taken, 0);
    team_stand(team);
    TEAM_WRITE(&team->gate, TEAM_INSIDE + n_workers - 1);
    team_wake(team);
    gate = team_perform(team, 0);
    while (gate != 0) {
        if (spins-- > 0) {
            TEAM_PAUSE();
            gate = TEAM_READ(&team->gate);
        } else {
            found = team_swap(&team->gate, gate, gate + TEAM_ASLEEP);
            if (found == gate) {
                PyThread_acquire_lock(team->done, WAIT_LOCK);
                return;
            }
            gate = found;
        }
    }
}

/* A helper's life. */
static void *team_serve(void *at)
{
    Team *team = at;
    int64_t gate, spins = TEAM_READ(&team->spins);
    for (;;) {
        gate = TEAM_READ(&team->gate);
        if (gate & TEAM_PLACES) {
            if (team_swap(&team->gate, gate, gate - 1 + TEAM_INSIDE) == gate) {
                if (team_perform(team, (int)(gate & TEAM_PLACES)) == TEAM_ASLEEP) PyThread_release_lock(team->done);
                spins = TEAM_READ(&team->spins);
            }
        } else if (spins-- > 0) {
            TEAM_PAUSE();
        } else {
            TEAM_ADD(&team->sleepers, 1);
            PyThread_acquire_lock(team->wake, WAIT_LOCK);
            TEAM_ADD(&team->sleepers, -1);
            team_come(team);
            TEAM_WRITE(&team->waking, 0);
            if (TEAM_READ(&team->gate) & TEAM_PLACES) team_wake(team);
            spins = TEAM_READ(&team->spins);
        }
    }
    return NULL; /* not reached */
}

/* A new helper; whether there is one. It takes no signals but its own faults: they are for threads that the program knows of. */
static int team_start(Team *team)
{
#ifdef _WIN32
    return PyThread_start_new_thread((void (*)(void *))team_serve, team) != PYTHREAD_INVALID_THREAD_ID;
#else
    pthread_t helper;
    pthread_attr_t attributes;
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS};
    sigset_t others, before;
    int failed;
    if (pthread_attr_init(&attributes)) return 0;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, TEAM_STACK);
    sigfillset(&others);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(&others, faults[i]);
    pthread_sigmask(SIG_SETMASK, &others, &before);
    failed = pthread_create(&helper, &attributes, team_serve, team);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return !failed;
#endif
}

static PyThread_type_lock team_lock(void)
{
    PyThread_type_lock lock = PyThread_allocate_lock();
    if (lock) PyThread_acquire_lock(lock, WAIT_LOCK);
    return lock;
}

static void *team_line(void *memory)
{
    return (void *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
}

/* A new team without helpers, or NULL where memory is short. Teams live as long as the process, as their helpers do. */
static Team *team_new(void)
{
    void *memory = calloc(1, sizeof(Team) + 64);
    if (!memory) return NULL;
    Team *team = team_line(memory);
    team->wake = team_lock();
    team->done = team_lock();
    return team->wake && team->done ? team : NULL;
}

/* Have parts for so many workers; whether there are. Nobody is inside. */
static int team_room(Team *team, int n_workers)
{
    if (team->room >= n_workers) return 1;
    void *memory = malloc(n_workers * sizeof(Part) + 64);
    if (!memory) return 0;
    free(team->memory);
    team->memory = memory;
    team->parts = team_line(memory);
    team->room = n_workers;
    return 1;
}

static void team_idle_take(void)
{
    while (__atomic_exchange_n(&team_idle_taken, 1, __ATOMIC_SEQ_CST)) TEAM_PAUSE();
}

static void team_run(team_task function, const void *job, Py_ssize_t n_tasks, int n_threads)
{
    int n_workers = n_tasks < n_threads ? (int)n_tasks : n_threads;
    team_idle_take();
    Team *team = team_idle;
    if (team) team_idle = team->next;
    TEAM_WRITE(&team_idle_taken, 0);
    if (!team) team = team_new();
    if (team && team_room(team, n_workers)) {
        while (team->n_helpers < n_workers - 1) { /* fewer do where the system gives no more threads */
            if (!team_start(team)) break;
            team->n_helpers++;
        }
        team_lead(team, function, job, n_tasks, n_workers);
    } else {
        for (Py_ssize_t task = 0; task < n_tasks; task++) function(job, task, 0);
    }
    if (!team) return;
    team_idle_take();
    team->next = team_idle;
    team_idle = team;
    TEAM_WRITE(&team_idle_taken, 0);
}

static void team_after_fork(void)
{
    team_idle = NULL; /* their helpers are not here */
    team_idle_taken = 0;
}

/* The capsule by which kernels find this. */
static PyObject *team_capsule(int cpus)
{
    team_cpus = cpus;
#ifndef _WIN32
    pthread_atfork(NULL, NULL, team_after_fork);
#endif
    return PyCapsule_New((void *)team_run, TEAM_CAPSULE, NULL);
}

#endif
#endif
