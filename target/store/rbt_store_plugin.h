#ifndef RBT_STORE_PLUGIN_H
#define RBT_STORE_PLUGIN_H
/* Stores outside of rbt's tree: the C interface between rbt-target and a shared library that "plugin:PATH[,key=value…]"
 * names. docs/writing_a_store.md walks through it, docs/examples/ram_store_plugin.c is a whole plugin.
 *
 * A plugin exports one function, rbt_store_plugin_entry(), which returns its table of calls. What rbt and the plugin
 * give each other begins with its own size: a member is there only if the struct is large enough to hold it, so that
 * either may be older than the other. New members come last. The version changes only when something stops working.
 */
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RBT_STORE_PLUGIN_VERSION 1u

/* How an operation ended: what the NVMe host is told. */
enum rbt_status {
  RBT_OK = 0,
  RBT_READ_ERROR = 1,   /* Unrecovered Read Error */
  RBT_WRITE_ERROR = 2,  /* Write Fault */
  RBT_NO_SPACE = 3,     /* Capacity Exceeded */
  RBT_READ_ONLY = 4,    /* Namespace is Write Protected */
  RBT_OUT_OF_RANGE = 5, /* LBA Out of Range */
  RBT_UNSUPPORTED = 6,  /* Invalid Command Opcode */
  RBT_UNAVAILABLE = 7,  /* Namespace Not Ready: the host may try again */
  RBT_PENDING = -1      /* from submit() only: done() is called later */
};

/* What a store can do besides reading and writing. */
enum rbt_ability {
  RBT_NONE = 0,    /* the host is not offered it, or it is ignored where NVMe allows that */
  RBT_EMULATE = 1, /* rbt does it with the other operations */
  RBT_NATIVE = 2   /* submit() is asked */
};

enum rbt_operation {
  RBT_READ = 1,
  RBT_WRITE = 2,
  RBT_FLUSH = 3,       /* everything that was done before becomes durable; offset, length and data are unset */
  RBT_DISCARD = 4,     /* the contents may be forgotten; data is unset */
  RBT_WRITE_ZEROES = 5 /* data is unset */
};

/* Of rbt_request.flags. */
#define RBT_FUA 1u            /* WRITE, WRITE_ZEROES: durable before it is done; only if `fua` is RBT_NATIVE */
#define RBT_MAY_DEALLOCATE 2u /* WRITE_ZEROES: space may be given back */

struct rbt_request;

/* One operation. rbt's until submit(), then the plugin's until it is done, then rbt's again. */
struct rbt_request {
  size_t struct_size;
  int32_t operation; /* enum rbt_operation */
  uint32_t flags;
  uint64_t offset; /* bytes, whole blocks, within the disk */
  uint64_t length; /* bytes, whole blocks; READ and WRITE: at most transfer_max */
  void* data;      /* `length` bytes, aligned to 4 KiB at least, until the request is done */
  void* user[4];   /* the plugin's own, for whatever it likes; unset at submit() */
  /* The request has ended with `status` (enum rbt_status). From any thread, once, not before submit() has been called
   * and never if submit() returned anything but RBT_PENDING. The request and its data are gone when it returns. */
  void (*done)(struct rbt_request* request, int status);
};

/* What the store is: filled in by describe(), which finds it zeroed with struct_size set. */
struct rbt_description {
  size_t struct_size;
  uint64_t size;         /* bytes, whole blocks, at least one */
  uint32_t block_size;   /* bytes: 512, 1024, 2048 or 4096 */
  uint32_t optimal_io;   /* bytes that suit the medium, whole blocks; 0: one block */
  uint32_t transfer_max; /* bytes of one READ or WRITE, whole blocks, at least 4096; 0: up to 2 MiB */
  uint8_t read_only;
  uint8_t flush;              /* NONE: what is written is durable; NATIVE. EMULATE is refused */
  uint8_t fua;                /* EMULATE: a write, then a flush; NATIVE. NONE is the same as EMULATE */
  uint8_t discard;            /* NONE; EMULATE: writes zeroes; NATIVE */
  uint8_t write_zeroes;       /* EMULATE: writes them; NATIVE. NONE: the host is refused */
  uint8_t discard_reads_zero; /* what was discarded reads as zeroes from then on */
  uint8_t has_identity;
  uint8_t reserved;
  uint8_t identity[16]; /* a UUID that stays with the contents; without one every start is a new disk to its hosts */
};

/* Memory that is the store itself: data then goes straight into and out of it, READ and WRITE are never submitted.
 * Byte n of the disk is byte n of the region. FUA is a FLUSH that follows. rbt zeroes in place by itself, so that `discard`
 * and `write_zeroes` are not RBT_NATIVE, and keeps blocks whole among its own hosts; who else looks may see them change. */
struct rbt_region {
  size_t struct_size;
  void* base;    /* page-aligned, mapped until close() */
  uint64_t size; /* bytes: at least the disk's */
  int32_t fd;    /* the memfd behind it, sealed against shrinking; -1: none, then shared memory hosts cannot use it */
  uint64_t fd_offset; /* of base */
};

struct rbt_option {
  const char* key;
  const char* value; /* "" for a word without '=' */
};

/* What rbt gives a store; valid until close(). */
struct rbt_host {
  size_t struct_size;
  const char* path; /* of the plugin, as given */
  void* context;
  /* A line for rbt's log. Any thread. `level`: 0 debug, 1 information, 2 warning, 3 error. */
  void (*log)(void* context, int level, const char* message);
};

/* The plugin. Pointers that are marked optional may be null. `store` and `queue` are what open() and open_queue() gave. */
struct rbt_store_plugin {
  size_t struct_size;
  uint32_t version; /* RBT_STORE_PLUGIN_VERSION */
  const char* name; /* for messages */
  const char* help; /* optional: the options, in a line: "size=SIZE [, fast]" */

  /* One disk. 0, or anything else and the reason, with what is allowed, in `error`. Slow is fine. */
  int (*open)(const struct rbt_host* host, const struct rbt_option* options, size_t count, void** store, char* error,
              size_t error_size);
  /* Nothing is under way and every queue is closed. */
  void (*close)(void* store);
  /* Once, after open(). 0, or the reason in `error`. */
  int (*describe)(void* store, struct rbt_description* description, char* error, size_t error_size);
  /* Optional. After describe(); null or not 0: there is none. */
  int (*map_region)(void* store, struct rbt_region* region);

  /* Either: an asynchronous store. A queue belongs to one of rbt's threads: everything but done() is called there, and
   * must not block it. open_queue and close_queue are optional: without them `queue` is the store. */
  int (*open_queue)(void* store, void** queue, char* error, size_t error_size);
  void (*close_queue)(void* queue);
  /* A status at once, or RBT_PENDING and done() later. Requests under way at the same time run in any order. */
  int (*submit)(void* queue, struct rbt_request* request);

  /* Or: a blocking one, which rbt calls on threads of its own, several at a time. `done` is not used. If both are there,
   * submit is. */
  int (*execute)(void* store, struct rbt_request* request);
};

/* Exported by the plugin, with default visibility. */
const struct rbt_store_plugin* rbt_store_plugin_entry(void);

#ifdef __cplusplus
}
#endif
#endif
