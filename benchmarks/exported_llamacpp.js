// Milliseconds of a prompt and of what is written behind it: node exported_llamacpp.js JOB OUT, in the folder that holds node_modules.
const fs = require('fs')
const path = require('path')
const { loadModel } = require(path.join(process.cwd(), 'node_modules', '@fugood', 'llama.node'))

async function main() {
  const job = JSON.parse(fs.readFileSync(process.argv[2]))
  const options = { n_ctx: 1024, n_batch: 1024, n_threads: 1, n_gpu_layers: 0, n_parallel: 1 }
  const contexts = {}
  for (const [name, model] of Object.entries(job.models)) contexts[name] = await loadModel({ model, ...options })
  const timed = []
  for (const [prompt, order] of job.rounds) {
    const found = {}
    for (const name of order) {
      const { timings } = await contexts[name].completion({ prompt, n_predict: job.new, temperature: 0, ignore_eos: true, seed: 1 })
      found[name] = [timings.prompt_ms, timings.predicted_ms]
    }
    timed.push(found)
  }
  fs.writeFileSync(process.argv[3], JSON.stringify(timed))
}

main().catch((error) => { console.error(error); process.exit(1) })
