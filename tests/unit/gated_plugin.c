/* A disk in memory that carries out what it was asked for when it is told to, on the thread that tells it. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "target/store/rbt_store_plugin.h"

enum { DISK = 1 << 20, HELD_MAX = 64, TRANSFER_MAX = 16384 };
static unsigned char disk[DISK];
static struct rbt_request* held[HELD_MAX];
static size_t held_count;
static uint64_t longest;

/* For the test, which loads the same library. */
size_t gate_held(void);
uint64_t gate_longest(void);
void gate_let_go(void);

size_t gate_held(void) {
  return held_count;
}
uint64_t gate_longest(void) {
  return longest;
}
void gate_let_go(void) {
  struct rbt_request* now[HELD_MAX];
  const size_t count = held_count;
  memcpy(now, held, sizeof held);
  held_count = 0;
  for (size_t i = 0; i < count; ++i) {
    struct rbt_request* request = now[i];
    if (request->operation == RBT_READ) memcpy(request->data, disk + request->offset, request->length);
    if (request->operation == RBT_WRITE) memcpy(disk + request->offset, request->data, request->length);
    if (request->operation == RBT_WRITE_ZEROES || request->operation == RBT_DISCARD)
      memset(disk + request->offset, 0, request->length);
    request->done(request, RBT_OK);
  }
}

static int open_disk(const struct rbt_host* host, const struct rbt_option* options, size_t count, void** store,
                     char* error, size_t error_size) {
  (void)host, (void)options, (void)count, (void)error, (void)error_size;
  *store = disk;
  return 0;
}
static void close_disk(void* store) {
  (void)store;
}
static int describe(void* store, struct rbt_description* description, char* error, size_t error_size) {
  (void)store, (void)error, (void)error_size;
  description->size = DISK;
  description->block_size = 512;
  description->transfer_max = TRANSFER_MAX;
  description->discard = RBT_NATIVE;
  description->write_zeroes = RBT_NATIVE;
  return 0;
}
static int submit(void* queue, struct rbt_request* request) {
  (void)queue;
  if (held_count == HELD_MAX) return RBT_UNAVAILABLE;
  if (request->length > longest) longest = request->length;
  held[held_count++] = request;
  return RBT_PENDING;
}

static const struct rbt_store_plugin plugin = {
    .struct_size = sizeof plugin,
    .version = RBT_STORE_PLUGIN_VERSION,
    .name = "gated",
    .open = open_disk,
    .close = close_disk,
    .describe = describe,
    .submit = submit,
};

const struct rbt_store_plugin* rbt_store_plugin_entry(void) {
  return &plugin;
}
